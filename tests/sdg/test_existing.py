"""Only a part of the work: on chunks, questions or pairs that exist already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.__main__ import main
from components.core.errors import InputError
from components.sdg.component import SdgConfig
from components.sdg.read.existing import read_existing
from components.sdg.read.sources import list_directory
from tests.sdg.llm_server import LlmServer, llm_server

CHUNKS = ["The valve of pump 7 opens at 3 bar.", "The pump stops when the tank is full.", "Oil is changed each May."]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-existing")
    with llm_server() as running:
        yield running


def write(root: Path, *records: Any) -> Path:
    root.mkdir()
    (root / "records.jsonl").write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return root


def run(server: LlmServer, corpus: Path, work: Path, task: str, *more: str) -> list[dict[str, Any]]:
    address = f"llm_base_url={server.url}"
    assert main(["sdg", "--work", str(work), "--corpus", str(corpus), f"task={task}", address, *more]) == 0
    return [json.loads(line) for line in (work / "qa_pairs" / "qa_pairs.jsonl").read_text().splitlines()]


def roles(server: LlmServer) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in server.requests]


def test_chunks_stay_as_they_are(server: LlmServer, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": CHUNKS})
    (record,) = run(server, corpus, tmp_path, "generate_from_chunks")
    assert [chunk["text"] for chunk in record["chunks"]] == CHUNKS
    assert record["deduplicated_qa_pairs"]
    assert len(record["qa_evaluations"]["evaluations"]) == len(record["deduplicated_qa_pairs"])


def test_questions_are_only_answered(server: LlmServer, tmp_path: Path) -> None:
    questions = ["when does the valve open", "what nobody knows", "when is oil changed"]
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": CHUNKS, "questions": questions})
    (record,) = run(server, corpus, tmp_path, "answer")
    assert [pair["question"] for pair in record["deduplicated_qa_pairs"]] == [questions[0], questions[2]]
    assert all(pair["answer"] and pair["segment_ids"] == [3] for pair in record["deduplicated_qa_pairs"])
    assert roles(server) == ["completions"]


def test_questions_of_a_long_document_are_answered_by_the_part_that_can(server: LlmServer, tmp_path: Path) -> None:
    def only_the_end(step: str, text: str) -> str:
        answers = json.loads(text)["answers"]
        return json.dumps({"answers": [one for one in answers if one["segment_ids"] == [40]]})

    server.edit = only_the_end
    chunks = [f"Part {n} says something about machine {n} and its parts." for n in range(40)]
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": chunks, "questions": ["which machine"]})
    (record,) = run(server, corpus, tmp_path, "answer", "max_prompt_words=100")
    assert record["deduplicated_qa_pairs"][0]["segment_ids"] == [40]
    assert len(server.requests) > 3


def test_pairs_are_only_judged(server: LlmServer, tmp_path: Path) -> None:
    pairs = [{"question": f"question {n}", "answer": "so", "segment_ids": [n]} for n in (1, 2)]
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": CHUNKS, "deduplicated_qa_pairs": pairs})
    (record,) = run(server, corpus, tmp_path, "judge")
    assert record["deduplicated_qa_pairs"] == pairs
    verdicts = [one["overall"]["assessment"] for one in record["qa_evaluations"]["evaluations"]]
    assert verdicts == ["question 1", "question 2"]
    assert roles(server) == ["completions"]


def test_questions_are_only_deduplicated(server: LlmServer, tmp_path: Path) -> None:
    questions = ["when", "where", "when", "why"]
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": CHUNKS, "questions": questions})
    (record,) = run(server, corpus, tmp_path, "deduplicate")
    assert [pair["question"] for pair in record["deduplicated_qa_pairs"]] == ["when", "where", "why"]
    assert roles(server) == ["embeddings"]


def test_what_sdg_made_can_be_judged_again(server: LlmServer, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus", {"source_id": "a", "chunks": CHUNKS})
    (made,) = run(server, corpus, tmp_path / "first", "generate_from_chunks")
    (again,) = run(server, tmp_path / "first" / "qa_pairs", tmp_path / "again", "judge")
    assert again["deduplicated_qa_pairs"] == made["deduplicated_qa_pairs"]


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("judge", "{broken", "records.jsonl:1 is not JSON"),
        ("judge", "[]", "expected source_id"),
        ("judge", '{"chunks": ["x"]}', "expected source_id"),
        ("judge", '{"source_id": "a"}', "expected chunks"),
        ("judge", '{"source_id": "a", "chunks": "x"}', "must be a list"),
        ("judge", '{"source_id": "a", "chunks": [""]}', "chunk 1 has no text"),
        ("judge", '{"source_id": "a", "chunks": [{"text": "x", "chunk_id": "1"}]}', "no whole number"),
        ("judge", '{"source_id": "a", "chunks": ["x"]}', "needs questions"),
        ("judge", '{"source_id": "a", "chunks": ["x"], "questions": ["why"]}', "needs an answer"),
        ("answer", '{"source_id": "a", "chunks": ["x"], "questions": [7]}', "text under 'question'"),
        ("answer", "", "holds no records"),
        ("answer", '{"source_id": "a", "chunks": ["x"], "questions": ["why"]}\n' * 2, "there twice"),
    ],
)
def test_records_that_cannot_be_used_are_named(tmp_path: Path, task: str, line: str, words: str) -> None:
    (tmp_path / "records.jsonl").write_text(line)
    with pytest.raises(InputError, match=words):
        read_existing([list_directory(tmp_path, SdgConfig(task=task))], SdgConfig(task=task))
