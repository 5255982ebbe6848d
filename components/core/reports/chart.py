"""Bar and line charts as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.core.reports.html import Markup, element, join

WIDTH, HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 4, 18, 26
_SERIES_COLOURS = 5
# A line of more points than this shows their means: the page stays small, and no wider screen is to be had.
_POINTS = 240
# Where an axis may end; a quarter of each has two digits.
_TOPS = (0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8, 1.0)


def bar_chart(
    title: str,
    groups: Sequence[str],
    series: Sequence[tuple[str, int]],
    values: Sequence[Sequence[float]],
    *,
    fitted: bool = False,
) -> Markup:
    """Draw bars of ``values[series][group]``, each between 0 and 1, with their value above.

    ``series`` are (name, number of its colour); the same number is the same colour in every chart and legend. The axis
    ends at 1, so that charts side by side compare; a ``fitted`` one ends above the highest bar.
    """
    highest = max(map(max, values))
    end = next(top for top in _TOPS if highest <= top) if fitted else 1.0
    inner = HEIGHT - _TOP - _BOTTOM
    group_width = (WIDTH - _LEFT - _RIGHT) / len(groups)
    bar_width = min(34.0, group_width * 0.84 / len(series))
    parts = [
        _grid(f"{quarter * end / 4:.2f}", HEIGHT - _BOTTOM - quarter / 4 * inner, left=_LEFT) for quarter in range(5)
    ]
    for g, group in enumerate(groups):
        middle = _LEFT + (g + 0.5) * group_width
        parts.append(element("text", group, x=f"{middle:.1f}", y=HEIGHT - 8, text_anchor="middle"))
        for s, (name, colour) in enumerate(series):
            left = middle + (s - len(series) / 2) * bar_width
            parts.append(_bar(f"{group}, {name}", values[s][g], left, bar_width, inner / end, colour))
    summary = "; ".join(
        f"{name}: " + ", ".join(f"{group} {value:.3f}" for group, value in zip(groups, row, strict=True))
        for (name, _), row in zip(series, values, strict=True)
    )
    drawing = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}. {summary}")
    return element("figure", element("figcaption", title), drawing)


def line_chart(
    title: str, points: Sequence[tuple[float, float]], *, colour: int = 2, low: float | None = None
) -> Markup:
    """Draw a line through ``points`` (x, y), x ascending and whole; the axis includes ``low`` if given."""
    shown = _means(points)
    values = [y for _, y in shown]
    ticks = round_ticks(min(values) if low is None else low, max(values))
    bottom, top = ticks[0], ticks[-1]
    first, last = shown[0][0], shown[-1][0]
    left = _LEFT + 22
    across, inner = WIDTH - left - _RIGHT - 14, HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        along = (x - first) / (last - first) if last > first else 0.5
        return left + along * across, HEIGHT - _BOTTOM - (y - bottom) / (top - bottom) * inner

    parts = [_grid(f"{tick:.4g}", place(first, tick)[1], left=left) for tick in ticks]
    between = [x for x in round_ticks(first, last) if first + 0.08 * (last - first) < x < last - 0.12 * (last - first)]
    for x in dict.fromkeys((first, *(x for x in between if x == round(x)), last)):
        parts.append(element("text", f"{x:,.0f}", x=f"{place(x, bottom)[0]:.1f}", y=HEIGHT - 8, text_anchor="middle"))
    drawn = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in shown)
    stroke = f"fill:none;stroke:var(--s{colour % _SERIES_COLOURS});stroke-width:1.5"
    parts.append(element("polyline", points=drawn, style=stroke))
    if len(shown) == 1:
        x, y = place(*shown[0])
        parts.append(element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3, class_=f"s{colour % _SERIES_COLOURS}"))
    summary = f"{title}: {len(points)} values, first {points[0][1]:.4g}, last {points[-1][1]:.4g}"
    drawing = element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary)
    return element("figure", element("figcaption", title), drawing)


def round_ticks(low: float, high: float) -> list[float]:
    """Return 4 to 7 values at equal distances of 1, 2 or 5 times a power of ten that enclose ``low`` and ``high``."""
    # Closer together than labels can tell.
    if high - low <= max(1e-9 * abs(low), 1e-9 * abs(high), 1e-300):
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0)
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    distance = next(size * power for size in (1, 2, 5, 10) if size * power >= least * (1 - 1e-9))
    start, end = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [float(f"{number * distance:.12g}") for number in range(start, end + 1)]


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most ``_POINTS`` points, each the mean of as many neighbours as the others; the first and last stay."""
    size = -(-len(points) // _POINTS)
    if size == 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [points[0], *means[1:-1], points[-1]]


def legend(series: Sequence[tuple[str, int]]) -> Markup:
    """Show name and colour of each series."""
    return element("ul", *(element("li", _swatch(colour), name) for name, colour in series), class_="legend")


def _grid(tick: str, y: float, *, left: int) -> Markup:
    line = element("line", x1=left, x2=WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    return join((line, element("text", tick, x=left - 6, y=f"{y + 4:.1f}", text_anchor="end")))


def _bar(name: str, value: float, left: float, width: float, unit: float, colour: int) -> Markup:
    """Draw one bar with its value above; ``unit`` is the height of the value 1."""
    height = value * unit
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
        _short(value),
        x=f"{left + width / 2:.1f}",
        y=f"{top - 4:.1f}",
        text_anchor="middle",
        font_size=min(11, round(width * 0.52, 1)),
        class_="bar",
    )
    return join((bar, label))


def _short(value: float) -> str:
    """Format a value with two digits in little room: ``.55``, ``1.0``."""
    text = f"{value:.2f}"
    return text.removeprefix("0") if text.startswith("0") else text[:3]


def _swatch(colour: int) -> Markup:
    square = element("rect", width=11, height=11, rx=2, class_=f"s{colour % _SERIES_COLOURS}")
    return element("svg", square, viewBox="0 0 11 11", aria_hidden="true")
