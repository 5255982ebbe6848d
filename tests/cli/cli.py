"""The command line as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.forked import ForkedCommand

ROOT = Path(__file__).resolve().parents[2]
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d \w+: ")


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    said: list[str]
    """Lines on stderr that are no log lines."""


def components(*arguments: str | Path) -> Done:
    """Run ``python -m components`` with ``arguments`` as a user does: in a new interpreter."""
    argv = [sys.executable, "-m", "components", *map(str, arguments)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    return _done(done.returncode, done.stdout, done.stderr)


def forked_components(*arguments: str | Path) -> Done:
    """Run the same in a process, and for ``run`` processes, that need not import torch again."""
    return _done(*ForkedCommand(arguments, os.environ).wait())


def _done(code: int, output: str, errors: str) -> Done:
    return Done(code, output, [line for line in errors.splitlines() if not LOG_LINE.match(line)])
