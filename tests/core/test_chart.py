"""Bars are as high as their values say, and their labels fit above them."""

from __future__ import annotations

import re

import pytest

from components.core.reports.chart import bar_chart


def heights(chart: str) -> list[float]:
    return [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', chart)]


def ticks(chart: str) -> list[float]:
    return [float(tick) for tick in re.findall(r'text-anchor="end">([\d.]+)<', chart)]


@pytest.mark.parametrize("highest", [0.0, 0.03, 0.12, 0.13, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("fitted", [False, True])
def test_bars_are_as_high_as_their_values_on_the_shown_axis(highest: float, fitted: bool) -> None:
    chart = bar_chart("Share", ["one", "two"], [("Scores", 1)], [[highest, highest / 2]], fitted=fitted)
    end = ticks(chart)[-1]
    assert highest <= end
    assert end == 1.0 or fitted
    # 196 of the 240 units of height are the axis.
    assert heights(chart) == pytest.approx([196 * highest / end, 98 * highest / end], abs=0.06)
    assert ticks(chart) == pytest.approx([end * quarter / 4 for quarter in range(5)], abs=0.0051)


def test_a_small_share_fills_a_fitted_chart() -> None:
    assert max(heights(bar_chart("Share", ["one"], [("Scores", 1)], [[0.11]], fitted=True))) > 150


def test_labels_of_bars_leave_out_what_every_one_has() -> None:
    chart = bar_chart("Share", ["a", "b", "c"], [("Scores", 1)], [[0.554, 1.0, 0.0]])
    assert re.findall(r'class="bar">([^<]+)<', chart) == [".55", "1.0", ".00"]
