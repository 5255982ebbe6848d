"""A dry run says what would be read and what it would cost, and sends nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.__main__ import main
from tests.sdg.llm_server import LlmServer, llm_server

PRICES = (
    "prices={nvidia/nemotron-3-nano-30b-a3b: {prompt: 1, completion: 2}, "
    "nvidia/llama-3.2-nv-embedqa-1b-v2: {prompt: 1}}"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-preview")
    with llm_server() as running:
        yield running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number in range(5):
        text = " ".join(f"Sentence {part} of document {number} is about valve{number}x{part}." for part in range(12))
        (directory / f"{number}.txt").write_text(text, encoding="utf-8")
    (directory / "empty.txt").write_text("")
    return directory


@pytest.mark.parametrize("command", [["sdg"], ["run", "--to", "prep"]], ids=["stage", "run"])
def test_dry_run_prints_what_would_be_read_and_paid(
    server: LlmServer, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    arguments = ["--dry-run", "--work", str(tmp_path / "work"), "--corpus", str(corpus), f"sdg.{PRICES}"]
    assert main([*command, *arguments, f"llm_base_url={server.url}"]) == 0
    shown = capsys.readouterr().out
    assert "5 documents" in shown
    assert "left out: 1 shorter than" in shown
    assert "about 20 requests" in shown  # three chats and one embedding for each document
    assert float(re.search(r"cost ([\d.,]+) by prices", shown).group(1)) >= 0.01
    assert not server.requests
    assert not (tmp_path / "work").exists()


def test_the_estimate_of_requests_is_what_a_run_without_faults_sends(
    server: LlmServer, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sdg", "--work", str(tmp_path / "work"), "--corpus", str(corpus), f"llm_base_url={server.url}"]
    assert main([*arguments, "--dry-run"]) == 0
    estimated = int(re.search(r"about (\d+) requests", capsys.readouterr().out).group(1))
    assert main(arguments) == 0
    assert len(server.requests) == estimated


def test_dry_run_of_an_unusable_corpus_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    assert main(["sdg", "--dry-run", "--work", str(tmp_path), "--corpus", str(tmp_path / "corpus")]) == 2
    assert "holds no files" in capsys.readouterr().err


@pytest.mark.parametrize("generator", ["llm", "offline"])
def test_preview_shows_the_first_document_and_writes_nothing(
    server: LlmServer, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], generator: str
) -> None:
    ledger = tmp_path / "ledger"
    arguments = ["sdg", "--work", str(tmp_path / "work"), "--corpus", str(corpus), f"llm_base_url={server.url}"]
    arguments += [f"generator={generator}", f"ledger_uri={ledger}"]
    assert main([*arguments, "--preview"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["source_id"] == "0.txt"
    assert shown["deduplicated_qa_pairs"]
    assert not (tmp_path / "work").exists()
    assert len(server.requests) == (4 if generator == "llm" else 0)
    assert main(arguments) == 0  # what was shown is not paid for again
    assert len(server.requests) == (20 if generator == "llm" else 0)


def test_a_poor_corpus_is_doubted_before_anything_is_paid(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sdg", "--dry-run", "--work", str(tmp_path), "--corpus", str(corpus)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "at most 35 questions" in shown
    assert "only 5 documents" in shown
    assert "unusable" not in shown
    for number in range(9):
        (corpus / f"empty{number}.txt").write_text("")
    assert main(arguments) == 0
    assert "unusable (10) than usable" in capsys.readouterr().out
    for number in range(60):
        (corpus / f"good{number}.txt").write_text(f"A text about pump{number} and its valve{number}. " * 4)
    assert main(arguments) == 0
    assert "warning" not in capsys.readouterr().out
