"""prep and eval as commands: the cache of one machine, and processes that fail as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.cli import components, forked_components

pytestmark = pytest.mark.slow


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    records = [
        {"query": f"Where is part {n}?", "positive": f"Part {n} lies in box {n * 7 % 30} on shelf {n}."}
        for n in range(30)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_on_one_machine_vectors_are_kept_in_work(tmp_path: Path, pairs: Path) -> None:
    work = tmp_path / "work"
    given = ("--profile", "small", "--work", work, "--qa-pairs", pairs, "hard_neg_margin=1.0")
    shown = components("prep", "--dry-run", *given).output
    assert f"embedding_cache_uri: {work / 'embedding_cache'}" in shown
    assert forked_components("prep", *given).code == 0
    assert {path.suffix for path in (work / "embedding_cache").rglob("*") if path.is_file()} == {".keys", ".vectors"}


def test_an_error_of_several_processes_is_one_line_with_its_exit_code(tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "broken").mkdir()
    given = ("--profile", "small", "--work", tmp_path / "work", "--qa-pairs", pairs, "--miner", tmp_path / "broken")
    done = forked_components("prep", *given, "num_processes=2")
    assert done.code == 2
    assert len(done.said) == 1
    assert done.said[0].startswith("error: ") and "is no checkpoint" in done.said[0]
    assert not (tmp_path / "work" / "training_data").exists()
