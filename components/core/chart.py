"""Grouped bar charts as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from components.core.html import Markup, element, join

WIDTH, HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 4, 18, 26
_SERIES_COLOURS = 5


def bar_chart(
    title: str, groups: Sequence[str], series: Sequence[tuple[str, int]], values: Sequence[Sequence[float]]
) -> Markup:
    """Bars of ``values[series][group]``, each between 0 and 1, with their value above.

    ``series`` are (name, number of its colour); the same number is the same colour in every chart and legend.
    """
    inner = HEIGHT - _TOP - _BOTTOM
    group_width = (WIDTH - _LEFT - _RIGHT) / len(groups)
    bar_width = min(34.0, group_width * 0.84 / len(series))
    parts = [_grid(tick, HEIGHT - _BOTTOM - tick * inner) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for g, group in enumerate(groups):
        middle = _LEFT + (g + 0.5) * group_width
        parts.append(element("text", group, x=f"{middle:.1f}", y=HEIGHT - 8, text_anchor="middle"))
        for s, (name, colour) in enumerate(series):
            left = middle + (s - len(series) / 2) * bar_width
            parts.append(_bar(f"{group}, {name}", values[s][g], left, bar_width, inner, colour))
    summary = "; ".join(
        f"{name}: " + ", ".join(f"{group} {value:.3f}" for group, value in zip(groups, row, strict=True))
        for (name, _), row in zip(series, values, strict=True)
    )
    drawing = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}. {summary}")
    return element("figure", element("figcaption", title), drawing)


def legend(series: Sequence[tuple[str, int]]) -> Markup:
    """Name and colour of each series."""
    return element("ul", *(element("li", _swatch(colour), name) for name, colour in series), class_="legend")


def _grid(tick: float, y: float) -> Markup:
    line = element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return join((line, element("text", f"{tick:.2f}", x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end")))


def _bar(name: str, value: float, left: float, width: float, inner: float, colour: int) -> Markup:
    height = value * inner
    top = HEIGHT - _BOTTOM - height
    bar = element(
        "rect",
        element("title", f"{name}: {value:.4f}"),
        x=f"{left + 1:.1f}",
        y=f"{top:.1f}",
        width=f"{width - 2:.1f}",
        height=f"{height:.1f}",
        rx=1.5,
        class_=f"s{colour % _SERIES_COLOURS}",
    )
    label = element(
        "text",
        f"{value:.2f}",
        x=f"{left + width / 2:.1f}",
        y=f"{top - 4:.1f}",
        text_anchor="middle",
        font_size=min(11, round(width * 0.42, 1)),
        class_="bar",
    )
    return join((bar, label))


def _swatch(colour: int) -> Markup:
    square = element("rect", width=11, height=11, rx=2, class_=f"s{colour % _SERIES_COLOURS}")
    return element("svg", square, viewBox="0 0 11 11", aria_hidden="true")
