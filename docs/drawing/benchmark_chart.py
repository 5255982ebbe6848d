"""Training and encoding speed beside other programs, read from the tables of benchmarks/README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from docs.drawing.svg import Box, Drawing

README = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"
# Title of a chart, column of its figure, whether less is better, and which rows it shows under which short name.
CHARTS = (
    (
        "Fine-tuning: seconds per optimizer step (less is better)",
        "s/step",
        {
            "recipe's loop (micro-batch 4)": "recipe's loop",
            "sentence-transformers, CachedMNRL 32, sdpa": "sentence-transformers, cached loss, sdpa",
            "sentence-transformers, MNRL 64 x 2, FA2 unpadded, liger": "sentence-transformers, FA2, liger",
            "hand loop: transformers, FA2 packed, liger": "hand-written loop, FA2 packed, liger",
            "ours, bf16": "ours, bf16",
            "ours, fp8": "ours, fp8",
        },
    ),
    (
        "Encoding: passages per second (more is better)",
        "passages/s",
        {
            "recipe's evaluation (BEIR wrapper, 4 at a time, fp16 autocast)": "recipe's evaluation",
            "recipe's miner (16 at a time, fp16 autocast)": "recipe's miner",
            "sentence-transformers, default (32, sdpa)": "sentence-transformers, default",
            "sentence-transformers, 256, FA2 unpadded, liger": "sentence-transformers, FA2, liger",
            "ours, bf16": "ours, bf16",
            "ours, fp8": "ours, fp8",
        },
    ),
)
_WIDTH, _ROW, _NAMES = 880, 27, 318


@dataclass(frozen=True)
class Bar:
    """One row of a table: a short name, the figure as it is printed there, and its value."""

    name: str
    figure: str
    value: float


def read_bars(column: str, names: dict[str, str], path: Path = README) -> list[Bar]:
    """Return the rows ``names`` of the first table of contestants that has ``column``.

    Raises KeyError for a row that the table does not have.
    """
    rows = _read_table(column, path)
    figures = {full: next(figure for name, figure in rows if _is_row(name, full)) for full in names}
    return [Bar(names[full], text, float(text.replace(",", ""))) for full, text in figures.items()]


def _read_table(column: str, path: Path) -> list[tuple[str, str]]:
    lines = [re.sub(r"\*\*", "", line) for line in path.read_text(encoding="utf-8").splitlines()]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    start = next(n for n, row in enumerate(cells) if row[0] == "contestant" and column in row)
    end = next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))
    return [(row[0], row[cells[start].index(column)]) for row in cells[start + 2 : end]]


def _is_row(name: str, wanted: str) -> bool:
    """Return whether the row is ``wanted``; a remark in brackets at its end does not count."""
    return wanted in (name, re.sub(r" \(another run .*\)$", "", name))


def draw() -> Drawing:
    """Draw a bar for each contestant, in two charts one above the other."""
    count = sum(len(names) for _, _, names in CHARTS)
    drawing = Drawing(_WIDTH, 30 + 62 * len(CHARTS) + _ROW * count, "Speed on an H200 beside other programs")
    y = 34.0
    for title, column, names in CHARTS:
        drawing.text(24, y, title, style="strong", anchor="start")
        y += 14
        bars = read_bars(column, names)
        scale = (_WIDTH - _NAMES - 110) / max(bar.value for bar in bars)
        for bar in bars:
            drawing.text(_NAMES, y + 17, bar.name, anchor="end")
            style = "ours" if bar.name.startswith("ours") else "bar"
            drawing.rectangle(Box(_NAMES + 12, y + 3, bar.value * scale, _ROW - 8), style, radius=2)
            drawing.text(_NAMES + 20 + bar.value * scale, y + 17, bar.figure, style="small", anchor="start")
            y += _ROW
        y += 42
    drawing.text(
        24,
        y - 14,
        "One NVIDIA H200, model of 1B parameters; all rows: benchmarks/README.md",
        style="small",
        anchor="start",
    )
    return drawing
