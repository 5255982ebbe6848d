"""Calls the container engine (docker, podman or buildah), and names the images that it builds and runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from components import __version__

ROOT = Path(__file__).resolve().parents[1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command with an engine has."""
    parser.add_argument("--engine", default="docker", help="docker, podman or buildah")
    parser.add_argument("--registry", required=True, help="where the images are, without their own names")


def tag(registry: str, image: str) -> str:
    """Return the repository and tag of an image; the tag is the version of the project."""
    return f"{registry}/{image}:{__version__}"


def call_engine(engine: str, *arguments: str) -> None:
    """Run a command of the engine at this terminal. Raises CalledProcessError when it fails."""
    subprocess.run([engine, *arguments], cwd=ROOT, check=True, env=_environment())


def ask_engine(engine: str, *arguments: str) -> str:
    """Return what a command of the engine prints. Raises CalledProcessError when it fails."""
    answer = subprocess.run(
        [engine, *arguments], cwd=ROOT, check=True, capture_output=True, text=True, env=_environment()
    )
    return answer.stdout


def _environment() -> dict[str, str]:
    # Docker before 23 builds every target that precedes the one asked for, unless it is BuildKit that builds.
    return {"DOCKER_BUILDKIT": "1", **os.environ}


def run_command(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command; return the exit code: 0 done, 2 bad input, else the code of the program that failed."""
    try:
        run(args)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd[:3])} ... failed with exit code {error.returncode}", file=sys.stderr)
        return error.returncode
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
