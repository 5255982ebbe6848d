"""When sdg finds that there is nothing to do, and when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.__main__ import main
from components.core.history import History, Verdict

TEXT = "Valve {0} is fitted with seal {0}. Press it in by hand. Test it under water. Note the pressure. Then sign."


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        document(tmp_path, number)
    return tmp_path


def document(work: Path, number: int, folder: str = ".", text: str = TEXT) -> None:
    path = work / "corpus" / folder / f"{number}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(" ".join(text.format(f"{number}{part}") for part in range(6)), encoding="utf-8")


def sdg(work: Path, *settings: str) -> dict:
    arguments = ["sdg", "--profile", "small", "--work", str(work), f"history_uri={work / 'history'}", *settings]
    assert main([*arguments, "near_duplicate_threshold=1"]) == 0
    return json.loads((work / "past_runs" / "run.json").read_text())


def settle(work: Path) -> str:
    """The gate refuses what the last run made: its work need not be done again."""
    history = History(str(work / "history"))
    run = history.read_runs()[-1].name
    history.write(run, Verdict(passed=False, reasons=("no better",), metric="NDCG@10", queries=20, scores={}))
    return run


def unchanged(work: Path, *settings: str) -> str | None:
    return sdg(work, *settings)["started"]["unchanged_since"]


def test_the_same_documents_end_the_run_once_they_were_carried_through(work: Path) -> None:
    assert unchanged(work) is None
    made = (work / "qa_pairs" / "qa_pairs.jsonl").stat().st_mtime_ns
    assert unchanged(work) is None, "the first run was not carried through"
    run = settle(work)
    made = (work / "qa_pairs" / "qa_pairs.jsonl").stat().st_mtime_ns
    assert unchanged(work) == run
    assert (work / "qa_pairs" / "qa_pairs.jsonl").stat().st_mtime_ns == made, "what was made stays valid"
    assert json.loads((work / "sdg_metrics.json").read_text())["results"] == {"changed": False}
    assert "Nothing new" in (work / "generation_report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ([], True),
        (["max_parallel_requests_for_gen=9", "request_timeout=5"], True),
        (["num_pairs=2"], False),
        (["seed=1"], False),
        (["base_model=other", "base_model_sha256=null"], False),
        (["skip_unchanged=false"], False),
    ],
)
def test_settings_that_change_the_data_are_something_new(work: Path, settings: list[str], ends: bool) -> None:
    sdg(work)
    run = settle(work)
    assert unchanged(work, *settings) == (run if ends else None)


@pytest.mark.parametrize("folder", [".", "2026-11-26"])
def test_new_changed_and_removed_documents_are_counted(work: Path, folder: str) -> None:
    """In one growing folder, and in dated folders below one."""
    sdg(work)
    settle(work)
    document(work, 7, folder)
    document(work, 8, folder)
    document(work, 0, text=TEXT.replace("hand", "machine"))
    (work / "corpus" / "1.txt").unlink()
    started = sdg(work)["started"]
    assert [started[name] for name in ("documents", "new", "changed", "removed")] == [4, 2, 1, 1]
    assert started["unchanged_since"] is None


def test_the_same_documents_under_another_dated_address_are_unchanged(work: Path) -> None:
    """corpus_uri = s3://bucket/[[ScheduledTime.2006-01-02]]/ with all documents in each."""
    sdg(work)
    run = settle(work)
    (work / "corpus").rename(work / "corpus-2026-11-27")
    assert unchanged(work, "--corpus", str(work / "corpus-2026-11-27")) == run
