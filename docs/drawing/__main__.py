"""Makes the pictures of the documentation anew; `make pictures` calls it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.drawing import architecture, benchmark_chart, deploy_sequence, pipeline_graph, screenshots
from docs.drawing.svg import Drawing

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "architecture.svg": architecture.draw,
    "benchmark.svg": benchmark_chart.draw,
    "deploy-sequence.svg": deploy_sequence.draw,
    "pipeline-graph.svg": pipeline_graph.draw,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write every picture, or compare the drawings with those that are there; return 0, or 2 for what is missing."""
    parser = argparse.ArgumentParser(prog="python -m docs.drawing", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("work/demo"), help="a run with eval, for the screenshots")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        draw().write(args.out / name)
    if problem := screenshots.find_problem(args.work):
        print(f"error: the drawings are new, the screenshots are not: {problem}", file=sys.stderr)
        return 2
    screenshots.take(args.work, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
