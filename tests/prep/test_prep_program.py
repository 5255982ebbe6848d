"""prep as the runner starts it: what fine-tuning and evaluation then read, and what bad input says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from beir.datasets.data_loader import GenericDataLoader

from components.core.encoder.checkpoint import load_base
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.runner import Outcome, Source, execute
from components.plan import resolve
from components.prep.component import STAGE, PrepConfig
from components.stages import by_name

PARTS = ("valve", "pump", "filter", "motor", "sensor", "bearing")
TRAINING_FILE = "train_mined.automodel_unrolled.json"


def labelled() -> list[dict]:
    """Thirty documents; every fifth question has two answers, and one brings a negative of its own."""
    records = []
    for n in range(30):
        part = PARTS[n % 6]
        text = f"To fit {part} {n}, loosen screw {n + 3} and press the {part} down."
        second = f"Chapter {n} again: {part} {n} is fitted from above."
        records.append(
            {
                "query": f"How do I fit {part} {n}?",
                "positive": [text, second] if n % 5 == 0 else text,
                "document": f"doc{n}",
            }
        )
    records[1]["negatives"] = ["The warranty ends after two years."]
    return records


def prep(work: Path, records: list[dict] | str, **given: object) -> Outcome:
    pairs = work / "pairs"
    pairs.mkdir(parents=True)
    text = records if isinstance(records, str) else "".join(json.dumps(record) + "\n" for record in records)
    (pairs / "records.jsonl").write_text(text, encoding="utf-8")
    small = resolve([by_name("prep")], profile_name="small", given={})["prep"]
    config = PrepConfig(**{**small.model_dump(), "encode_batch_tokens": 2048, **given})
    return execute(
        STAGE,
        config,
        inputs={"qa_pairs": Source(pairs)},
        outputs={name: work / "out" / name for name in STAGE.outputs},
        uris={},
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("prep")
    # A margin of 1 keeps what scores below the answer; the documents are much alike.
    prep(work, labelled(), train_ratio=0.6, val_ratio=0.2, test_ratio=0.2, hard_neg_margin=1.0)
    return work / "out"


def passages(published: Path) -> dict[str, str]:
    table = pq.read_table(published / "training_data" / "corpus" / "train.parquet")
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_training_file_is_what_automodel_reads(published: Path) -> None:
    folder = published / "training_data"
    content = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    texts = passages(published)
    assert (folder / content["corpus"]["path"]).is_dir()
    about = json.loads((folder / "corpus" / "merlin_metadata.json").read_text())
    assert about["class"] == "TextQADataset"
    of = {record["query"]: record for record in labelled()}
    for row in content["data"]:
        assert row["corpus_id"] == about["corpus_id"]
        record = of[row["question"]]
        own = [record["positive"]] if isinstance(record["positive"], str) else record["positive"]
        assert [texts[one["id"]] in own for one in row["pos_doc"]] == [True]
        assert not {texts[one["id"]] for one in row["neg_doc"]} & set(own)
        assert all(np.isfinite(one["score"]) for one in row["neg_doc"])
        assert len({one["id"] for one in row["neg_doc"]}) == len(row["neg_doc"]) == 5
    asked = [row["question"] for row in content["data"]]
    assert all(asked.count(q) == (2 if isinstance(of[q]["positive"], list) else 1) for q in asked)
    assert len({row["question_id"] for row in content["data"]}) == len(asked)


def test_scores_are_those_of_the_base_model(published: Path, small_config: EncoderConfig) -> None:
    texts = passages(published)
    row = json.loads((published / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"][0]
    listed = [*row["pos_doc"], *row["neg_doc"]]
    encoder = load_base(
        EncoderConfig(**resolve([by_name("prep")], profile_name="small", given={})["prep"].encoder().model_dump())
    )
    query = encoder.encode([row["question"]], "query", batch_tokens=2048)[0]
    vectors = encoder.encode([texts[one["id"]] for one in listed], "passage", batch_tokens=2048)
    np.testing.assert_allclose(vectors @ query, [one["score"] for one in listed], atol=1e-5)


def test_beir_reads_the_test_set_and_training_never_saw_it(published: Path) -> None:
    corpus, queries, qrels = GenericDataLoader(str(published / "eval_data")).load(split="test")
    of = {record["query"]: record for record in labelled()}
    seen = set(passages(published).values())
    assert len(queries) == len(qrels) == 6
    for name, query in queries.items():
        own = of[query]["positive"]
        answers = {corpus[passage]["text"] for passage in qrels[name]}
        assert answers == ({own} if isinstance(own, str) else set(own))
        assert not answers & seen
    validation = json.loads((published / "training_data" / "val.json").read_text(encoding="utf-8"))["data"]
    assert len(validation) == 6
    assert not {row["question"] for row in validation} & set(queries.values())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param("{broken\n", "records.jsonl:1 is not JSON", id="no JSON"),
        pytest.param('{"query": "a"}\n', "records.jsonl:1: expected a text", id="no positive"),
        pytest.param('{"query": 3, "positive": "a"}\n', "'query', found 3", id="query no text"),
        pytest.param("", "no question of", id="empty"),
        pytest.param('{"query": "a", "positive": "b", "score": 4}\n', "lower quality_threshold", id="all judged bad"),
        pytest.param('{"query": "a", "positive": "b"}\n', "leaves the test side empty", id="one document"),
    ],
)
def test_bad_input_is_one_line_and_publishes_nothing(tmp_path: Path, records: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        prep(tmp_path, records)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "training_data").exists()
