"""Writes the packages of each image with the hashes of every file that the package index offers; `make lock`.

Needs uv, which finds the index in its own variables. UV_INDEX or UV_FIND_LINKS name the place of PyTorch's wheels for
the CPU; only the lock files for the CPU may take a package from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from images.engine import ROOT, run_command

# The extras of pyproject.toml that each image's lock file holds. The variants are for machines without a GPU, and for
# a server that has one.
LOCKS = {
    "cpu/requirements.txt": ("sdg", "documents", "server", "deploy", "kfp"),
    "gpu/requirements.txt": ("train", "track", "trainjob"),
    "gpu/requirements-cpu.txt": ("train", "track", "trainjob"),
    "export/requirements.txt": ("export", "quantization"),
    "export/requirements-cpu.txt": ("export",),
    "server/requirements.txt": ("server",),
    "server/requirements-gpu.txt": ("server-gpu",),
}
# What only builds need: the backend of packages without a wheel, and the tool that lists what an image holds.
TOOLS = {
    "cpu/requirements-build.txt": "setuptools>=80\nwheel>=0.45\n",
    "sbom/requirements.txt": "cyclonedx-bom>=7.2,<8\n",
}
CPU_TORCH = "torch==2.13.0+cpu"


def main() -> int:
    """Write every lock file; return the exit code."""
    return run_command(_lock, argparse.ArgumentParser(prog="images/lock.py", description=__doc__).parse_args())


def _lock(_: argparse.Namespace) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("UV_INDEX", "UV_FIND_LINKS")}
    for name, extras in LOCKS.items():
        options = [text for extra in extras for text in ("--extra", extra)]
        for_cpu = name.endswith("-cpu.txt")
        _compile(name, ["pyproject.toml", *options], CPU_TORCH if for_cpu else "", os.environ if for_cpu else plain)
    for name, requirements in TOOLS.items():
        _compile(name, ["-"], "", plain, requirements)


def _compile(name: str, source: list[str], constraint: str, environment: Mapping[str, str], text: str = "") -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(constraint)
        constraints.flush()
        subprocess.run(
            ["uv", "pip", "compile", *source, "--output-file", f"images/{name}", "--quiet",
             "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
             "--no-emit-index-url", "--no-emit-find-links",
             "--constraint", "constraints.txt", "--constraint", constraints.name],
            cwd=ROOT, check=True, env=environment, input=text, text=True,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
