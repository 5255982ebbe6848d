"""Reading training data, and the order in which it is seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.finetune.component import FinetuneConfig
from components.finetune.data.training_data import batch_size, batches, read_training_data, steps
from components.finetune.schedule import learning_rate
from tests.finetune.training import TRAINING_FILE, records, texts, write_data

Content = dict[str, Any]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", records(6), texts(6))


def test_examples_are_the_first_positive_and_the_negatives_in_their_order(tmp_path: Path) -> None:
    rows = records(3, negatives=3)
    rows[1]["pos_doc"] = [{"id": "d5", "score": 0.9}, {"id": "d6"}]
    rows[2] = {**rows[2], "question": rows[0]["question"]}
    data = read_training_data(write_data(tmp_path / "data", rows, texts(3)), EncoderConfig())
    assert [(e.query, e.positive, e.negatives) for e in data.examples] == [
        ("How do I fit valve 0?", "d0", ("d1", "d2", "d3")),
        ("How do I fit pump 1?", "d5", ("d2", "d3", "d0")),
        ("How do I fit valve 0?", "d2", ("d3", "d0", "d1")),
    ]
    assert data.passages == texts(3)
    assert data.answers == {"How do I fit valve 0?": {"d0", "d2"}, "How do I fit pump 1?": {"d5"}}


def test_passages_may_lie_in_several_files(directory: Path) -> None:
    table = pq.read_table(directory / "corpus" / "train.parquet")
    pq.write_table(table.slice(0, 5), directory / "corpus" / "train.parquet")
    pq.write_table(table.slice(5), directory / "corpus" / "more.parquet")
    assert read_training_data(directory, EncoderConfig()).passages == texts(6)


def no_file(directory: Path) -> None:
    (directory / TRAINING_FILE).unlink()


def not_json(directory: Path) -> None:
    (directory / TRAINING_FILE).write_text('{"data": [', encoding="utf-8")


def not_utf8(directory: Path) -> None:
    (directory / TRAINING_FILE).write_bytes(b'{"data": "\xff\xfe"}')


def nested_without_end(directory: Path) -> None:
    (directory / TRAINING_FILE).write_text("[" * 200_000, encoding="utf-8")


def no_parquet(directory: Path) -> None:
    (directory / "corpus" / "train.parquet").unlink()


def torn_parquet(directory: Path) -> None:
    file = directory / "corpus" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])


def other_columns(directory: Path) -> None:
    pq.write_table(pa.table({"id": ["d0"], "passage": ["text"]}), directory / "corpus" / "train.parquet")


def text_missing(directory: Path) -> None:
    names = list(texts(6))
    pq.write_table(pa.table({"id": names, "text": [None] * len(names)}), directory / "corpus" / "train.parquet")


def mined_with_another_prefix(directory: Path) -> None:
    EncoderConfig(query_prefix="ask: ").write(directory)


def changed(change: Callable[[Content], object], name: str) -> Callable[[Path], None]:
    def harm(directory: Path) -> None:
        content = json.loads((directory / TRAINING_FILE).read_text())
        found = change(content)
        (directory / TRAINING_FILE).write_text(json.dumps(content if found is None else found))

    harm.__name__ = name
    return harm


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (no_file, f"no {TRAINING_FILE}"),
    (not_json, "not JSON"),
    (not_utf8, "not JSON"),
    (nested_without_end, "not JSON"),
    (no_parquet, "no .parquet"),
    (torn_parquet, "expected a parquet file"),
    (other_columns, "expected a parquet file with columns id and text"),
    (text_missing, "d0"),
    (mined_with_another_prefix, "query_prefix = 'ask: '"),
    (changed(lambda content: [content], "a list"), "expected"),
    (changed(lambda content: content.update(data={}), "data is no list"), "expected"),
    (changed(lambda content: content.update(data=[]), "no examples"), "no examples"),
    (changed(lambda content: content.update(corpus="./corpus/"), "corpus is text"), "corpus"),
    (changed(lambda content: content["corpus"].update(path="../elsewhere"), "path leaves"), "leaves the directory"),
    (changed(lambda content: content["corpus"].update(path="/etc"), "path is absolute"), "leaves the directory"),
    (changed(lambda content: content["corpus"].update(path="a\0b"), "path with NUL"), "corpus"),
    (changed(lambda content: content["data"].insert(2, "text"), "record is text"), r"data\[2\]: expected question"),
    (
        changed(lambda content: content["data"][3].__delitem__("question"), "no question"),
        r"data\[3\]: expected question",
    ),
    (changed(lambda content: content["data"][3].update(question=" "), "empty question"), r"data\[3\] has no question"),
    (changed(lambda content: content["data"][3].update(question=5), "number"), r"data\[3\] has no question"),
    (changed(lambda content: content["data"][1].update(pos_doc=[]), "no positive"), r"data\[1\] has no question or"),
    (changed(lambda content: content["data"][1].update(neg_doc=[]), "no negative"), r"data\[1\] has no negative"),
    (changed(lambda content: content["data"][1].update(neg_doc=None), "null"), r"data\[1\]: expected"),
    (changed(lambda content: content["data"][1].update(neg_doc=["d1"]), "bare ids"), r"data\[1\]: expected"),
    (
        changed(lambda content: content["data"][4].update(pos_doc=[{"id": "x"}]), "unknown id"),
        r"data\[4\] names .* 'x',",
    ),
]


@pytest.mark.parametrize(("harm", "says"), BROKEN, ids=[harm.__name__ for harm, _ in BROKEN])
def test_what_cannot_be_trained_on_is_refused_in_one_line(
    directory: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(directory)
    with pytest.raises(InputError, match=says) as refused:
        read_training_data(directory, EncoderConfig())
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


KEYS = st.sampled_from(["id", "path", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("d1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=6,
)
RECORD = st.fixed_dictionaries({}, optional={"question": JSON, "pos_doc": JSON, "neg_doc": JSON})
CONTENT = st.fixed_dictionaries({}, optional={"data": JSON | st.lists(RECORD, max_size=3), "corpus": JSON})


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT | JSON)
def test_no_content_makes_a_traceback(directory: Path, content: object) -> None:
    (directory / TRAINING_FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_training_data(directory, EncoderConfig())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "examples", "expected"),
    [(128, 100, 16), (128, 300, 37), (128, 1999, 64), (128, 2000, 128), (128, 1, 16), (64, 100, 64), (256, 10, 256)],
)
def test_a_batch_left_at_128_is_scaled_to_few_examples(given: int, examples: int, expected: int) -> None:
    assert batch_size(given, examples) == expected


@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_sees_every_example_once(examples: int, size: int, epochs: int, seed: int) -> None:
    seen = list(batches(examples, size, epochs, seed))
    assert len(seen) == steps(examples, size, epochs)
    assert all(1 <= len(rows) <= size for _, rows in seen)
    for epoch in range(epochs):
        rows = Counter(row for number, batch in seen if number == epoch for row in batch)
        assert rows == Counter(range(examples))
    assert seen == list(batches(examples, size, epochs, seed))


def test_every_number_of_examples_up_to_600_is_trained_on_whole() -> None:
    """With the default settings; the few examples that are left in the end make a batch of their own."""
    config = FinetuneConfig()
    for examples in range(1, 601):
        size = batch_size(config.global_batch_size, examples)
        total = steps(examples, size, config.num_epochs)
        seen = list(batches(examples, size, config.num_epochs, config.seed))
        assert len(seen) == total > 0
        assert Counter(row for _, rows in seen for row in rows) == dict.fromkeys(range(examples), config.num_epochs)
        assert all(0 < learning_rate(step, total, config) <= config.learning_rate for step in range(total))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int) -> list[list[int]]:
        return [rows for _, rows in batches(50, 50, 3, seed)]

    first, other = order(1), order(2)
    assert len({tuple(rows) for rows in (*first, *other)}) == 6
    assert all(rows != sorted(rows) for rows in (*first, *other))
