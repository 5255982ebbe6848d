"""Kustomizations as `kubectl kustomize` builds them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
Object = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here: kustomizations not built")


def built(directory: Path) -> list[Object]:
    """The objects of the kustomization in ``directory``."""
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def documents(path: Path) -> list[Object]:
    """The YAML documents of a file."""
    return [item for item in yaml.safe_load_all(path.read_text(encoding="utf-8")) if item]
