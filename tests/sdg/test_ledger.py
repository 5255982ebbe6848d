"""Paid answers survive whatever happens to the process that paid for them, on a disk and in a bucket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from components.core.errors import ActionNeeded, InputError, Transient
from components.sdg.llm import ledger as ledger_module
from components.sdg.llm.ledger import Ledger, canonical, key_of, open_ledger
from components.sdg.llm.prompts import AnsweredQuestions, DocumentArtifacts, Evaluations, Pairs
from tests.sdg.kills import arguments, kill_often, made, run, write_corpus
from tests.sdg.llm_server import LlmServer, llm_server
from tests.storage.s3_server import S3Server, s3_server
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-ledger")
    with llm_server() as running:
        yield running


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "ledger")
    request.getfixturevalue("bucket")
    return "s3://bucket/team/ledger"


def put_all(ledger: Ledger, answers: dict[str, Any]) -> None:
    async def work() -> None:
        await asyncio.gather(*(ledger.put(key, answer) for key, answer in answers.items()))

    asyncio.run(work())


def test_answers_are_there_for_the_next_process(uri: str) -> None:
    answers = {f"k{number}": {"text": f"answer {number} \u2028 é"} for number in range(50)}
    put_all(open_ledger(uri), answers)
    put_all(open_ledger(uri), {"k0": {"text": "another"}, "more": {"text": "x"}})
    again = open_ledger(uri)
    assert {key: again.get(key) for key in answers} == answers  # the first one stays
    assert len(again) == 51
    assert again.get("unknown") is None


def test_a_torn_line_costs_that_line_only(tmp_path: Path) -> None:
    put_all(open_ledger(str(tmp_path)), {"a": 1, "b": 2})
    segment = max(tmp_path.glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes()[:-4])
    put_all(open_ledger(str(tmp_path)), {"c": 3})
    again = open_ledger(str(tmp_path))
    assert [again.get(key) for key in "abc"] == [1, None, 3]


def test_many_segments_of_a_bucket_become_one(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SEGMENTS_TO_MERGE", 8)
    for number in range(5):
        put_all(open_ledger("s3://bucket/l"), {f"k{number}": number})
    assert len(bucket.objects) < 8
    assert [open_ledger("s3://bucket/l").get(f"k{number}") for number in range(5)] == [0, 1, 2, 3, 4]


def test_an_answer_counts_only_when_it_is_stored(bucket: S3Server) -> None:
    ledger = open_ledger("s3://bucket/l")
    bucket.put_status = 403
    with pytest.raises(Transient, match="answers cannot be kept"):
        put_all(ledger, {"a": 1})
    assert ledger.get("a") is None


def test_a_ledger_that_cannot_be_written_is_found_before_anything_is_paid(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put_status = 403
    with pytest.raises(ActionNeeded, match="ledger_uri = s3://bucket/l"):
        open_ledger("s3://bucket/l")
    (tmp_path / "file").write_text("")
    with pytest.raises(ActionNeeded, match="ledger_uri"):
        open_ledger(str(tmp_path / "file"))
    with pytest.raises(InputError, match="expected a directory"):
        open_ledger("ftp://host/x")


def test_keys_differ_in_everything_that_an_answer_depends_on() -> None:
    base = {"path": "/chat", "body": {"model": "m", "messages": ["x"], "temperature": 0.6}, "schema": {}, "attempt": 0}
    others = [
        base,
        base | {"attempt": 1},
        base | {"schema": {"title": "x"}},
        base | {"body": base["body"] | {"model": "n"}},
        base | {"body": base["body"] | {"messages": ["y"]}},
        base | {"body": base["body"] | {"temperature": 0.7}},
    ]

    def key(parts: dict[str, Any]) -> str:
        return key_of(**{name: canonical(part) for name, part in parts.items()})

    assert len({key(parts) for parts in others}) == len(others)
    assert key(base) == key(dict(reversed(base.items())))
    # Keys must not change from one release to the next: what a ledger holds would be paid for again.
    assert key(base) == "c41bf61bbdbe81cccc56f98f2fc544ca607ede3270cb7024d54d854dc01e1db6"


def test_no_answer_is_paid_for_twice_however_often_the_process_is_killed(
    server: LlmServer, bucket: S3Server, tmp_path: Path
) -> None:
    assert kill_often(server, bucket, tmp_path, kills=3)["requests"] > 0


def test_sigterm_keeps_the_answers_under_way(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 12)
    uri = f"ledger_uri={tmp_path / 'ledger'}"
    server.delay = 0.2
    process = subprocess.Popen(
        arguments(server, tmp_path / "work", corpus, uri), stderr=subprocess.PIPE, text=True, env=os.environ
    )
    wait_for(lambda: len(server.requests) >= 6, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 75
    assert "stopped by SIGTERM" in errors.splitlines()[-1]
    assert not (tmp_path / "work" / "qa_pairs").exists()
    server.delay = 0.0
    assert run(server, tmp_path / "work", corpus, uri).returncode == 0
    bodies = [json.dumps(body, sort_keys=True) for _, body in server.requests]
    assert len(bodies) == len(set(bodies))


def test_a_corpus_that_changed_costs_its_changes_only(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 6)
    uri = f"ledger_uri={tmp_path / 'ledger'}"
    assert run(server, tmp_path / "first", corpus, uri).returncode == 0
    (corpus / "000.txt").unlink()
    (corpus / "001.txt").rename(corpus / "renamed.txt")
    (corpus / "002.txt").write_text("Something quite different stands here. " * 6, encoding="utf-8")
    (corpus / "new.txt").write_text("A new document about gearboxes and their oil. " * 6, encoding="utf-8")
    server.requests.clear()
    result = run(server, tmp_path / "second", corpus, uri)
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == 2 * 4  # three chats and one embedding for each of two documents
    metrics = json.loads((tmp_path / "second" / "sdg_metrics.json").read_text())["metrics"]
    assert (metrics["reused_documents"], metrics["paid_answers"]) == (4, 8)
    assert "4 of 6 documents came from the ledger whole" in result.stderr
    assert run(server, tmp_path / "fresh", corpus).returncode == 0
    assert made(tmp_path / "second") == made(tmp_path / "fresh")
    lines = made(tmp_path / "second")["qa_pairs.jsonl"].decode().splitlines()
    assert [json.loads(line)["source_id"] for line in lines] == sorted(path.name for path in corpus.iterdir())


def test_a_ledger_holds_no_key_and_no_document(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 2)
    assert run(server, tmp_path / "work", corpus, f"ledger_uri={tmp_path / 'ledger'}").returncode == 0
    stored = b"".join(path.read_bytes() for path in (tmp_path / "ledger").iterdir()).decode()
    assert "nvapi-canary-ledger" not in stored
    assert "Sentence 3 of document" not in stored


@pytest.mark.parametrize(
    ("schema", "start"),
    [
        (AnsweredQuestions, "892270996d93"),
        (DocumentArtifacts, "30f46a63656c"),
        (Evaluations, "e01633dcad17"),
        (Pairs, "a6e2a1d02026"),
    ],
)
def test_answers_of_earlier_releases_are_found_again(schema: type[BaseModel], start: str) -> None:
    """The form of an answer, down to the names and docstrings of its classes, is part of its key."""
    form = canonical(schema.model_json_schema())
    assert key_of(schema=form).startswith(start)
