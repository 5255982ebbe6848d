"""Installs PyTorch's build for the CPU on a machine without an NVIDIA GPU; `make demo` calls it before the packages.

PyTorch on PyPI is the build for CUDA, which brings gigabytes of NVIDIA's libraries. The build for the CPU is on
PyTorch's own index. If that index cannot be reached, nothing is installed here, and PyTorch comes from the default one.

Needs nothing but Python and pip: it runs before any package is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Seconds without an answer of the index after which it counts as unreachable.
TIMEOUT = 10
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def main(argv: Sequence[str] | None = None, pip: Sequence[str] = PIP) -> int:
    """Install PyTorch for the CPU where that is possible, and print in one line what was chosen; return 0."""
    parser = argparse.ArgumentParser(prog="install_torch", description=__doc__)
    parser.add_argument("--index", default=CPU_INDEX, help="package index with PyTorch's CPU wheels")
    parser.add_argument("--constraint", type=Path, default=Path("constraints.txt"), help="file that has the version")
    args = parser.parse_args(argv)
    if sys.platform != "linux" or is_torch_installed():
        return 0
    if has_nvidia_gpu():
        print("PyTorch: the build for CUDA, because this machine has an NVIDIA GPU.", flush=True)
    elif has_custom_index(pip):
        print("PyTorch: the build that your own package index has (pip's index-url or no-index is set).", flush=True)
    elif _install(args.index, args.constraint, pip):
        print(f"PyTorch: the build for the CPU from {args.index}, because there is no NVIDIA GPU.", flush=True)
    else:
        print(
            f"PyTorch: the build for CUDA (gigabytes) from the default index, because {args.index} "
            "does not give the build for the CPU.",
            flush=True,
        )
    return 0


def is_torch_installed() -> bool:
    """Return whether this Python has a PyTorch already."""
    return importlib.util.find_spec("torch") is not None


def has_nvidia_gpu() -> bool:
    """Return whether NVIDIA's driver is on this machine."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def has_custom_index(pip: Sequence[str]) -> bool:
    """Return whether pip is configured, by its files or its environment, to use an index other than PyPI."""
    lines = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False).stdout.splitlines()
    return any(line.partition("=")[0].rpartition(".")[2] in ("index-url", "no-index") for line in lines)


def _install(index: str, constraint: Path, pip: Sequence[str]) -> bool:
    # Without dependencies: those come from the default index with everything else, and keep its versions.
    options = ["--quiet", "--no-deps", "--index-url", index, "--constraint", str(constraint)]
    options += ["--timeout", str(TIMEOUT), "--retries", "0"]
    return subprocess.run([*pip, "install", *options, "torch"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
