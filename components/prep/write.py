"""Writes training data in Automodel's format and test data in BEIR's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.prep.mine.mining import MinedExample
from components.prep.read.records import QueryExample

TRAINING_FILE = "train_mined.automodel_unrolled.json"
_CORPUS_ID = "corpus"


def passage_id(text: str) -> str:
    """Return an id that depends on the text alone, so that it is the same in every run."""
    return "d_" + hashlib.sha256(text.encode()).hexdigest()[:16]


def write_training_data(
    directory: Path,
    train: Sequence[QueryExample],
    mined: Sequence[MinedExample],
    val: Sequence[QueryExample],
    passages: Sequence[str],
    documents: Mapping[str, Sequence[str]] | None = None,
    *,
    mining: Mapping[str, Any] | None = None,
) -> int:
    """Write the training data; return the number of training records.

    A question with several positives becomes one record for each, with the same negatives.

    Args:
        directory: Where the files go; it must not exist.
        train: The training examples.
        mined: The negatives of each training example.
        val: The validation examples, written without negatives.
        passages: Texts of the corpus that training may see.
        documents: Documents that hold each passage; the first is written beside it, unless it is named after the
            passage itself.
        mining: Settings that the negatives were mined with.
    """
    documents = documents or {}
    directory.mkdir()
    rows = []
    for number, (example, scored) in enumerate(zip(train, mined, strict=True)):
        negatives = [
            {"id": passage_id(negative.text), "score": round(negative.score, 6), "origin": negative.origin}
            for negative in scored.negatives
        ]
        several = len(example.positives) > 1
        for index, (text, score) in enumerate(zip(example.positives, scored.positive_scores, strict=True)):
            positive = {"id": passage_id(text), "score": round(score, 6)}
            rows.append(
                _to_record(f"q{number}_{index}" if several else f"q{number}", example.query, [positive], negatives)
            )
    _write_records(directory / TRAINING_FILE, rows, **({"mining": {"args": dict(mining)}} if mining else {}))
    validation = [
        _to_record(f"v{number}", example.query, [{"id": passage_id(text)} for text in example.positives], [])
        for number, example in enumerate(val)
    ]
    _write_records(directory / "val.json", validation)
    texts = sorted({*passages, *(text for example in val for text in example.positives)})
    (directory / "corpus").mkdir()
    holders = [next(iter(documents.get(text, ())), text) for text in texts]
    table = pa.table(
        {
            "id": [passage_id(text) for text in texts],
            "text": texts,
            "document": pa.array(
                [None if name == text else name for name, text in zip(holders, texts, strict=True)], pa.string()
            ),
        }
    )
    pq.write_table(table, directory / "corpus" / "train.parquet", compression="zstd")
    metadata = {"corpus_id": _CORPUS_ID, "class": "TextQADataset"}
    (directory / "corpus" / "merlin_metadata.json").write_text(json.dumps(metadata) + "\n", encoding="utf-8")
    return len(rows)


def write_eval_data(directory: Path, test: Sequence[QueryExample], passages: dict[str, list[str]]) -> None:
    """Write the test set: all passages, the test questions, and which passages answer them."""
    (directory / "qrels").mkdir(parents=True)
    _write_lines(
        directory / "corpus.jsonl",
        (
            {"_id": passage_id(text), "title": "", "text": text, "metadata": {"document": documents[0]}}
            for text, documents in sorted(passages.items())
        ),
    )
    _write_lines(
        directory / "queries.jsonl",
        (
            {"_id": f"q{number}", "text": example.query, "metadata": {**example.metadata, "document": example.document}}
            for number, example in enumerate(test)
        ),
    )
    with (directory / "qrels" / "test.tsv").open("w", encoding="utf-8") as out:
        out.write("query-id\tcorpus-id\tscore\n")
        for number, example in enumerate(test):
            out.writelines(f"q{number}\t{passage_id(text)}\t1\n" for text in example.positives)


def _to_record(
    name: str, query: str, positives: list[dict[str, Any]], negatives: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "question_id": name,
        "question": query,
        "corpus_id": _CORPUS_ID,
        "pos_doc": positives,
        "neg_doc": negatives,
    }


def _write_records(path: Path, rows: list[dict[str, Any]], **header: Any) -> None:
    content = {"corpus": {"path": "./corpus/"}, **header, "data": rows}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(_to_json_value(record), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def _to_json_value(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: a user's metadata may have dates, NaN and infinity."""
    if isinstance(value, dict):
        return {str(name): _to_json_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
