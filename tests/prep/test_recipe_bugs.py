"""What the original recipe gets wrong on the way from documents to a trained model, by its number in our list."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.core import progress
from components.core.encoder.checkpoint import load_base
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.runner import Outcome, Source, execute
from components.finetune.component import FinetuneConfig
from components.finetune.data.training_data import batch_size, batches
from components.finetune.schedule import learning_rate
from components.prep.component import STAGE, PrepConfig, RecordSettings
from components.prep.mine.hard_negatives import find_hard_negatives
from components.prep.mine.mining import MinedExample, Negative
from components.prep.read.inputs import read_records
from components.prep.read.records import QueryExample, Records
from components.prep.write import TRAINING_FILE, write_training_data
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name
from components.sdg.component import SdgConfig
from tests.finetune.training import finetune, records, settings, texts, write_base, write_data
from tests.prep.settings import negatives
from tests.sdg.reading import read_directory

pytestmark = pytest.mark.slow

PARTS = ("valve", "pump", "filter", "motor", "sensor", "bearing")


def read(folder: Path, *found: dict[str, Any]) -> Records:
    (folder / "qa_pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    return read_records(folder, RecordSettings())


def document(*pairs: Any, name: str = "a.txt", scores: list[Any] | None = None, **other: Any) -> dict[str, Any]:
    record = {
        "source_id": name,
        "chunks": [{"chunk_id": n, "text": f"{name} chunk {n}"} for n in (1, 2, 3)],
        "deduplicated_qa_pairs": list(pairs),
    }
    if scores is not None:
        record["qa_evaluations"] = {"evaluations": [{"overall": {"score": score}} for score in scores]}
    return {**record, **other}


def pair(question: str, *segments: int) -> dict[str, Any]:
    return {"question": question, "segment_ids": list(segments)}


def prep(work: Path, found: list[dict[str, Any]], **given: Any) -> Outcome:
    pairs = work / "pairs"
    pairs.mkdir(parents=True)
    (pairs / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    small = resolve_settings([by_name("prep")], profile_name="small", values={})["prep"].model_dump()
    return execute(
        STAGE,
        PrepConfig(**{**small, "hard_neg_margin": 1.0, **given}),
        inputs={"qa_pairs": Source(pairs)},
        outputs={name: work / "out" / name for name in STAGE.outputs},
        uris={},
    )


def labelled(count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "query": f"How do I fit {PARTS[n % 6]} {n}?",
            "positive": f"To fit {PARTS[n % 6]} {n}, loosen screw {n + 3} and press the {PARTS[n % 6]} down.",
            "document": f"doc{n}",
        }
        for n in range(count)
    ]


def rows(work: Path) -> list[dict[str, Any]]:
    return json.loads((work / "out" / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]


def corpus(work: Path) -> dict[str, str]:
    table = pq.read_table(work / "out" / "training_data" / "corpus" / "train.parquet").to_pylist()
    return {row["id"]: row["text"] for row in table}


def test_b1_no_negative_above_the_margin_comes_back_with_an_infinite_score(tmp_path: Path) -> None:
    query, passages = np.float32([[1, 0]]), np.float32([[0.5, 0], [0.9, 0], [0.49, 0]])
    found = find_hard_negatives(query, passages, positives=[[0]], excluded=[[0]], settings=negatives(5, margin=0.99))
    assert found.mined.tolist() == found.total.tolist() == found.above.tolist() == [1]
    assert found.rows[0, 0] == 2
    mined = [MinedExample((0.5,), (Negative("n", float(found.scores[0, 0]), "mined"),))]
    write_training_data(tmp_path / "t", [QueryExample("q", ("p",), "d")], mined, [], ["p", "n"])
    text = (tmp_path / "t" / TRAINING_FILE).read_text(encoding="utf-8")
    assert len(json.loads(text, parse_constant=lambda name: pytest.fail(name))["data"][0]["neg_doc"]) == 1


@pytest.mark.parametrize("local", [1, 4, 7])
def test_b2_every_number_of_examples_makes_batches(local: int) -> None:
    for examples in range(1, 600):
        size = batch_size(128, examples)
        seen = [row for _, batch in batches(examples, size, 1, seed=0) for row in batch]
        assert sorted(seen) == list(range(examples))
    assert FinetuneConfig(local_batch_size=local).global_batch_size == 128


def test_b5_short_files_are_not_replaced_by_repeats_of_others(tmp_path: Path) -> None:
    for name, text in zip("abcde", ["long enough " * 9, "short", "also long " * 9, "", "quite long " * 9], strict=True):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    assert [one.source_id for one in read_directory(tmp_path, SdgConfig()).documents] == ["a.txt", "c.txt", "e.txt"]


def test_b8_test_and_validation_documents_are_never_mined(tmp_path: Path) -> None:
    prep(tmp_path, labelled(), train_ratio=0.4, val_ratio=0.3, test_ratio=0.3)
    asked = {row["question"] for row in rows(tmp_path)}
    of_training = {one["positive"] for one in labelled() if one["query"] in asked}
    found = corpus(tmp_path)
    assert {found[one["id"]] for row in rows(tmp_path) for one in row["neg_doc"]} <= of_training
    assert len(of_training) == 8


def test_b9_one_text_in_two_files_is_on_one_side(tmp_path: Path) -> None:
    """Every second document is a copy of the one before it, in other spacing and with a word more."""
    copies = [
        {
            "query": f"Where is {one['document']} described?",
            "positive": one["positive"].replace(" ", "  ") + " Now.",
            "document": f"copy of {one['document']}",
        }
        for one in labelled()
    ]
    outcome = prep(tmp_path, [*labelled(), *copies], train_ratio=0.5, test_ratio=0.5)
    assert outcome.metrics["duplicate_passages"] == 20
    tested = (tmp_path / "out" / "eval_data" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    held = {json.loads(line)["metadata"]["document"].removeprefix("copy of ") for line in tested}
    trained = {one["document"] for one in labelled() if one["positive"] in corpus(tmp_path).values()}
    assert len(held) == len(trained) == 10
    assert not held & trained


def test_b10_nothing_of_an_earlier_mining_is_used_again(tmp_path: Path, small_config: EncoderConfig) -> None:
    """In the same place, with one cache and another prefix: every score is that of the settings of its own run."""
    for prefix in ("", "an entirely different prefix: "):
        shutil.rmtree(tmp_path / "pairs", ignore_errors=True)
        prep(tmp_path, labelled(), passage_prefix=prefix, embedding_cache_uri=str(tmp_path / "cache"))
        encoder = load_base(small_config.model_copy(update={"passage_prefix": prefix}))
        row, found = rows(tmp_path)[0], corpus(tmp_path)
        vectors = encoder.encode([found[one["id"]] for one in row["neg_doc"]], "passage")
        expected = vectors @ encoder.encode([row["question"]], "query")[0]
        np.testing.assert_allclose([one["score"] for one in row["neg_doc"]], expected, atol=1e-5)


def test_b11_new_data_do_not_continue_a_finished_training(tmp_path: Path, small_config: EncoderConfig) -> None:
    config = settings(
        write_base(tmp_path / "base", small_config), checkpoint_uri=str(tmp_path / "states"), global_batch_size=4
    )
    first = finetune(tmp_path / "1", write_data(tmp_path / "old", records(12), texts(12)), config)
    second = finetune(tmp_path / "2", write_data(tmp_path / "new", records(8), texts(8)), config)
    assert second.metrics["resumed_at_step"] == 0
    assert second.metrics["steps"] == 6 < first.metrics["steps"]


def test_b12_the_validation_split_is_measured(tmp_path: Path, small_config: EncoderConfig) -> None:
    """prep's own val.json, and a training that says what it found there."""
    prep(tmp_path, labelled(30), train_ratio=0.6, val_ratio=0.2, test_ratio=0.2)
    given = small_config.model_dump() | {"global_batch_size": 8, "num_epochs": 1, "val_every_steps": 1}
    outcome = finetune(tmp_path, tmp_path / "out" / "training_data", FinetuneConfig(**given))
    assert 0 < outcome.metrics["best_val_ndcg_at_10"] <= 1


def test_b13_a_failed_cell_does_not_abort_the_conversion(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        document(pair("one?", 1), qa_evaluations=None),
        document(name="b.txt", deduplicated_qa_pairs=None, qa_evaluations=None),
    )
    assert [example.query for example in found.examples] == ["one?"]


def test_b14_all_pairs_below_the_threshold_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 x score below quality_threshold.*1 of 3 to 4, 1 of 5 to 6.*\(7\) to 5"):
        read(tmp_path, document(pair("one?", 1), pair("two?", 2), scores=[3, 5]))


def test_b15_labelled_records_need_no_judge_and_get_a_test_set(tmp_path: Path) -> None:
    outcome = prep(tmp_path, labelled())
    assert outcome.metrics["eval_queries"] == 4
    assert len((tmp_path / "out" / "eval_data" / "queries.jsonl").read_text().splitlines()) == 4


def test_b16_the_folder_can_be_moved(tmp_path: Path) -> None:
    mined = [MinedExample((0.5, 0.4), (Negative("odd \u2028 text", 0.3, "mined"),))]
    write_training_data(
        tmp_path / "made", [QueryExample("q", ("p", "r"), "d")], mined, [], ["p", "r", "odd \u2028 text"]
    )
    moved = Path(shutil.move(tmp_path / "made", tmp_path / "elsewhere"))
    content = json.loads((moved / TRAINING_FILE).read_text(encoding="utf-8"))
    table = pq.read_table(moved / content["corpus"]["path"] / "train.parquet").to_pylist()
    found = {row["id"]: row["text"] for row in table}
    assert [[found[p["id"]] for p in row["pos_doc"]] for row in content["data"]] == [["p"], ["r"]]
    assert [found[row["neg_doc"][0]["id"]] for row in content["data"]] == ["odd \u2028 text"] * 2


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([document()], id="documents without pairs"),
        pytest.param([document(pair("one?", 9))], id="pairs without passages"),
        pytest.param([], id="an empty file"),
    ],
)
def test_b29_no_record_left_is_one_line(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"no question of .* is left") as raised:
        read(tmp_path, *found)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("total", range(1, 12))
def test_b30_fewer_steps_than_the_warm_up_have_rates(total: int) -> None:
    rates = [learning_rate(step, total, FinetuneConfig(lr_warmup_steps=5)) for step in range(total)]
    assert all(math.isfinite(rate) and 0 < rate <= FinetuneConfig().learning_rate for rate in rates)


def test_b37_files_that_cannot_be_used_are_named_and_extensions_fit_in_any_spelling(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "SHOUTED.TXT").write_text("loud and long enough " * 5, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("größe ".encode("latin-1") * 20)
    found = read_directory(tmp_path, SdgConfig(file_extensions="txt"))
    assert [one.source_id for one in found.documents] == ["SHOUTED.TXT"]
    assert found.skipped == {"not UTF-8": 1}
    assert "latin.txt: not UTF-8" in caplog.text


def test_b38_mining_says_how_far_it_is_while_it_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "components")
    prep(tmp_path, labelled())
    for work in ("encoding passages", "encoding queries", "mining hard negatives"):
        assert any(line.startswith(f"{work}: ") and "to go" in line for line in caplog.messages), work


def test_b39_a_question_without_passages_is_dropped_and_one_that_names_them_twice_has_them_once(
    tmp_path: Path,
) -> None:
    found = read(tmp_path, document(pair("none?"), pair("twice?", 2, 2, 1)))
    assert [example.positives for example in found.examples] == [("a.txt chunk 2", "a.txt chunk 1")]
    assert found.dropped == {"no passage named": 1}
