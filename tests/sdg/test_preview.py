"""A dry run says what would be read and what it would cost, and sends nothing."""

from __future__ import annotations

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
