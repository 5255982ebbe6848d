"""The table of values in the chart's README, from the comments in values.yaml: python -m tests.chart.values_table."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.chart.rendering import CHART

README = CHART / "README.md"
_HEAD = "| value | default | meaning |\n|---|---|---|\n"


def table() -> str:
    """One row for each value, with the comment above it or above what it is part of."""
    return _HEAD + "".join(f"| `{name}` | `{default}` | {meaning} |\n" for name, default, meaning in _rows())


def _rows() -> Iterator[tuple[str, str, str]]:
    comments: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    above: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text.removeprefix("# "))
        elif found := re.match(r"(\w+):\s*(.*)", text):
            path = (*path[: (len(line) - len(text)) // 2], found[1])
            comments[path] = " ".join(above) or comments[path[:-1]]
            above = []
            if found[2]:
                yield ".".join(path), found[2], comments[path]


def main() -> None:
    """Put the table into the README, in place of the one there."""
    before, _, rest = README.read_text(encoding="utf-8").partition(_HEAD)
    README.write_text(before + table() + re.sub(r"\A(\|.*\n)*", "", rest), encoding="utf-8")


if __name__ == "__main__":
    main()
