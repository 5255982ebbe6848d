"""The benchmark of search and mining runs from end to end, and its contestants find the same passages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import search

pytestmark = pytest.mark.slow


def test_all_contestants_run_and_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["mining", "--tiny", "--json", str(tmp_path / "results.json")])
    search.main()
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    assert [row["contestant"].split(":")[0].split(",")[0] for row in rows] == [
        "ours",
        "torch",
        "ours",
        "recipe's miner",
        "ours",
    ]
    assert all(float(row["seconds"]) > 0 for row in rows)
