"""The report tells the course of training, and stays one harmless page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from components.core.chart import line_chart
from components.finetune.report import build_report
from components.finetune.trainer import Step
from tests.finetune.test_validation import VAL, write_val
from tests.finetune.training import finetune, log, records, settings, texts, write_data


class Page(HTMLParser):
    """Tags and texts; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_run_ends_with_a_page_of_its_course(tiny: Path, tmp_path: Path) -> None:
    data = write_val(write_data(tmp_path / "data", records(12), texts(12)), VAL)
    outcome = finetune(tmp_path, data, settings(tiny, global_batch_size=4))
    page = Page((tmp_path / "training_report").read_text(encoding="utf-8"))
    assert page.tags.count("polyline") == 4
    assert f"{outcome.metrics['best_val_ndcg_at_10']:.4f}" in page.texts
    assert f"{log(tmp_path)[0]['loss']:.4f} at the start" in " ".join(page.texts)
    assert not {"script", "img", "iframe", "link"} & set(page.tags)


def test_text_of_the_settings_stays_text() -> None:
    attack = "</dd><script>alert(1)</script>"
    done = [Step(1, 0, 2.0, 1.0, 1e-5, 100.0)]
    figures = {"examples": 1, "steps": 1, "batch_size": 1, "first_loss": 2.0, "last_loss": 2.0, "resumed_at_step": 0}
    page = Page(build_report(settings(attack), done, [], figures | {"tokens_per_second": 100.0}))
    assert "script" not in page.tags and attack in page.texts


def points_of(chart: str) -> list[tuple[float, float]]:
    drawn = re.search('points="([^"]*)"', chart)
    assert drawn is not None
    return [tuple(map(float, pair.split(","))) for pair in drawn[1].split()]


def test_a_line_rises_where_its_values_do() -> None:
    found = points_of(line_chart("Loss", [(1, 4.0), (2, 1.0), (3, 2.0)]))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    heights = [-y for _, y in found]
    assert heights[0] > heights[2] > heights[1]


def test_a_long_line_stays_small_and_keeps_its_ends() -> None:
    values = [(float(n), float(n)) for n in range(100_000)]
    found = points_of(line_chart("Loss", values))
    assert len(found) <= 250
    first, last = points_of(line_chart("Loss", [values[0], values[-1]]))
    assert (found[0], found[-1]) == (first, last)


def test_one_value_and_equal_values_can_be_drawn() -> None:
    assert len(points_of(line_chart("Loss", [(1, 0.0)]))) == 1
    assert len({y for _, y in points_of(line_chart("Loss", [(1, 2.0), (2, 2.0)]))}) == 1
