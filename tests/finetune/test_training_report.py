"""The report tells the course of training, and stays one harmless page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from components.core.reports.chart import line_chart, round_ticks
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


def labels_of(chart: str) -> list[str]:
    return re.findall("<text[^>]*>([^<]*)</text>", chart)


def test_labels_are_round_numbers_and_lie_inside_of_the_drawing() -> None:
    chart = line_chart("Loss", [(float(n), 3.25 - n / 60) for n in range(1, 189)], low=0.0)
    assert labels_of(chart) == ["0", "1", "2", "3", "4", "1", "50", "100", "150", "188"]
    rate = line_chart("Learning rate", [(1, 1e-6), (5, 8.2e-6)], low=0.0)
    assert "8e-06" in labels_of(rate)
    width = 6.5  # of a character, at most
    for text in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="(\w+)">([^<]*)<', chart + rate):
        x, length = float(text[0]), width * len(text[2])
        start, end = (x - length, x) if text[1] == "end" else (x - length / 2, x + length / 2)
        assert start >= 0 and end <= 480, text


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_a_few_ticks_hold_any_two_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    slack = 1e-8 * (abs(low) + abs(high)) + 1e-290
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack


def test_settings_stand_there_as_they_are_given() -> None:
    figures = {"examples": 1, "steps": 1, "batch_size": 1, "first_loss": 2.0, "last_loss": 2.0, "resumed_at_step": 0}
    done = [Step(1, 0, 2.0, 1.0, 1e-5, 100.0)]
    page = Page(build_report(settings("base"), done, [], figures | {"tokens_per_second": 100.0}))
    assert page.texts[page.texts.index("lora_rank") + 1] == "null"
    assert page.texts[page.texts.index("l2_normalize") + 1] == "true"
    assert "of 1 queries, 1 epoch" in page.texts
