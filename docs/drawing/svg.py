"""Boxes, arrows and texts as an SVG that can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

_STYLE = """
    :root { --page: #ffffff; --text: #1f2937; --quiet: #5b6472; --line: #8a94a3; --box: #eef4e4; --edge: #76b900;
            --soft: #f3f4f6; --soft-edge: #b6bdc8; --bad: #fde8e4; --bad-edge: #d1553c; --bar: #b6bdc8; }
    @media (prefers-color-scheme: dark) {
      :root { --page: #14181f; --text: #e6e9ee; --quiet: #a3adba; --line: #7d8796; --box: #26331a; --edge: #8fce2e;
              --soft: #222831; --soft-edge: #4d5664; --bad: #3b211d; --bad-edge: #e2745d; --bar: #4d5664; } }
    text { font-family: -apple-system, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
           font-size: 14px; fill: var(--text); }
    .small { font-size: 12px; fill: var(--quiet); } .strong { font-weight: 600; }
    .page { fill: var(--page); } .box { fill: var(--box); stroke: var(--edge); }
    .soft { fill: var(--soft); stroke: var(--soft-edge); } .bad { fill: var(--bad); stroke: var(--bad-edge); }
    .group { fill: none; stroke: var(--soft-edge); stroke-dasharray: 5 4; }
    .bar { fill: var(--bar); } .ours { fill: var(--edge); }
    .arrow { fill: none; stroke: var(--line); stroke-width: 1.5; } .head { fill: var(--line); }
"""


@dataclass(frozen=True)
class Box:
    """A rectangle with lines of text; the first line is its title."""

    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> tuple[float, float]:
        """Return the centre of the box."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def right(self) -> float:
        """Return the x of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Return the y of the lower edge."""
        return self.top + self.height


@dataclass
class Drawing:
    """An SVG of ``width`` by ``height`` pixels; ``title`` is what a screen reader says."""

    width: float
    height: float
    title: str
    _parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, style: str = "", anchor: str = "middle") -> None:
        """Write ``text`` with its baseline at ``y``."""
        kind = f' class="{style}"' if style else ""
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(text)}</text>')

    def rectangle(self, box: Box, style: str, radius: float = 6) -> None:
        """Draw a rectangle."""
        size = f'x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{box.height:g}"'
        self._parts.append(f'<rect {size} rx="{radius:g}" class="{style}"/>')

    def box(self, box: Box, lines: Sequence[str], style: str = "box") -> None:
        """Draw a box with a title and smaller lines below it."""
        self.rectangle(box, style)
        x, y = box.middle
        top = y - 8 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x, top + 17 * number, line, style="small" if number else "strong")

    def arrow(self, *points: tuple[float, float], label: str = "", at: tuple[float, float] | None = None) -> None:
        """Draw a line through ``points`` that ends in an arrow head, with ``label`` centred ``at`` a point."""
        path = " L".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<path d="M{path}" class="arrow" marker-end="url(#head)"/>')
        if label and at:
            self.text(*at, label, style="small")

    def write(self, path: Path) -> None:
        """Write the drawing to ``path``."""
        path.write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        marker = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0 L10,5 L0,10 z" class="head"/></marker>'
        )
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.title)}">'
        page = f'<rect width="{self.width:g}" height="{self.height:g}" rx="8" class="page"/>'
        lines = [head, f"<style>{_STYLE}</style>", f"<defs>{marker}</defs>", page, *self._parts, "</svg>"]
        return "\n".join(lines) + "\n"
