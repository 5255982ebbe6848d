"""Every kind of record is read for what it says; broken pairs are counted and cost no more than themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.prep.component import RecordSettings
from components.prep.read.inputs import read_records
from components.prep.read.records import Records


def read(folder: Path, *records: dict[str, Any], threshold: float = 7, max_positives: int = 5) -> Records:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "records.jsonl").write_text(text, encoding="utf-8")
    return read_records(folder, RecordSettings(quality_threshold=threshold, max_pos_docs=max_positives))


def generated(*pairs: Any, scores: list[Any] | None = None, **other: Any) -> dict[str, Any]:
    """One document of sdg with three chunks."""
    record: dict[str, Any] = {
        "source_id": "a.txt",
        "chunks": [{"chunk_id": n, "text": f"chunk {n}"} for n in (1, 2, 3)],
        "deduplicated_qa_pairs": list(pairs),
    }
    if scores is not None:
        record["qa_evaluations"] = {"evaluations": [{"overall": {"score": score}} for score in scores]}
    return {**record, **other}


def pair(question: Any = "why?", segments: Any = (1,)) -> dict[str, Any]:
    return {"question": question, "segment_ids": list(segments) if isinstance(segments, tuple) else segments}


def test_generated_pair_names_its_chunks_once(tmp_path: Path) -> None:
    records = read(tmp_path, generated(pair(" why? ", (3, 1, 3))))
    (example,) = records.examples
    assert (example.query, example.positives, example.document) == ("why?", ("chunk 3", "chunk 1"), "a.txt")
    assert set(records.passages) == {"chunk 1", "chunk 2", "chunk 3"}


def test_threshold_keeps_its_own_value_and_pairs_nobody_judged(tmp_path: Path) -> None:
    records = read(
        tmp_path,
        generated(*(pair(f"q{n}") for n in range(5)), scores=[7, 6.9, "8", "9/10", "good"]),
        generated(pair("unjudged")),
    )
    assert [example.query for example in records.examples] == ["q0", "q2", "q3", "unjudged"]
    assert records.dropped == {"score below quality_threshold": 1, "no usable score": 1}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param("text", "no question", id="no record"),
        pytest.param(pair(None), "no question", id="question null"),
        pytest.param(pair("  "), "no question", id="question blank"),
        pytest.param(pair(segments=()), "no passage named", id="no segments"),
        pytest.param(pair(segments=None), "no passage named", id="segments null"),
        pytest.param(pair(segments=(9,)), "unknown passage named", id="unknown segment"),
        pytest.param(pair(segments=([1],)), "unknown passage named", id="segment in a list"),
        pytest.param(pair(segments=({"id": 1},)), "unknown passage named", id="segment a record"),
    ],
)
def test_a_broken_pair_costs_only_itself(tmp_path: Path, broken: Any, reason: str) -> None:
    records = read(tmp_path, generated(broken, pair("good?")))
    assert [example.query for example in records.examples] == ["good?"]
    assert records.dropped == {reason: 1}


def test_labelled_record(tmp_path: Path) -> None:
    record = {"query": "a?", "positive": ["p\u2028q", "r"], "document": "d", "negatives": "n", "score": 8, "by": "us"}
    (example,) = read(tmp_path, record).examples
    assert (example.positives, example.negatives, example.document) == (("p\u2028q", "r"), ("n",), "d")
    assert example.metadata == {"score": 8, "by": "us", "source": "records"}
