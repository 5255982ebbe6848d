"""Pictures of the documentation: drawings are those that the code makes, and every picture is shown on a page."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from components.recipe.stages import NAMES
from docs.drawing import benchmark_chart
from docs.drawing.__main__ import DRAWINGS, PICTURES, main
from docs.drawing.pipeline_graph import read_graph
from docs.drawing.screenshots import REPORTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path for pattern in ("*.md", "docs/*.md", "*/README.md", "components/*/README.md") for path in ROOT.glob(pattern)
]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_fresh(name: str) -> None:
    text = str(DRAWINGS[name]())
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert (PICTURES / name).read_text(encoding="utf-8") == text, "run make pictures"


def test_pictures_are_small_and_each_is_shown() -> None:
    pictures = {path.name: path.stat().st_size for path in PICTURES.iterdir()}
    assert set(pictures) == {*DRAWINGS, *(name for name, *_ in REPORTS)}
    assert sum(pictures.values()) < 300_000
    shown = [
        (path, image) for path in PAGES for image in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text("utf-8"))
    ]
    assert {image.rpartition("/")[2] for _, image in shown} >= set(pictures)
    assert all((path.parent / image).is_file() for path, image in shown if not image.startswith("http"))


def test_the_chart_has_the_figures_of_the_table() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").replace("**", "")
    for _, column, names in benchmark_chart.CHARTS:
        bars = benchmark_chart.read_bars(column, names)
        assert [bar.name for bar in bars] == list(names.values())
        for full, bar in zip(names, bars, strict=True):
            assert re.search(rf"^\| {re.escape(full)}( \([^|]*\))? \| {bar.figure} \|", table, re.MULTILINE)


def test_the_graph_is_that_of_the_compiled_pipeline() -> None:
    graph = read_graph()
    assert graph.tasks == ["importer", *NAMES]
    assert ("prep", "finetune", "training_data") in graph.artifacts
    assert [names for _, names in graph.conditions] == [list(NAMES[1:]), ["export", "deploy"]]


def test_screenshots_say_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out"), "--work", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: the drawings are new, the screenshots are not: Chromium is needed (one of chromium, chromium-browser, "
        "google-chrome; Debian: apt-get install chromium)\n"
    )
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    assert main(["--out", str(tmp_path / "out"), "--work", str(tmp_path)]) == 2
    assert "run make demo first" in capsys.readouterr().err
