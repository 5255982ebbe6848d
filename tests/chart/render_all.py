"""Writes every object that chart and overlays make, for linters: python -m tests.chart.render_all DIR."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from tests.chart.rendering import objects
from tests.chart.test_chart import CASES
from tests.manifests.kustomize import MANIFESTS, built


def main(directory: Path) -> None:
    """One file for each values file of the chart, and for each overlay where there is a kubectl."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {f"chart-{name}": objects(values) for name, values in CASES.items()}
    if shutil.which("kubectl"):
        found |= {f"overlay-{path.name}": built(path) for path in sorted((MANIFESTS / "overlays").iterdir())}
    for name, items in found.items():
        (directory / f"{name}.yaml").write_text(yaml.safe_dump_all(items, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
