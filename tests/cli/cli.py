"""The command line as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d \w+: ")


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    said: list[str]
    """Lines on stderr that are no log lines."""


def components(*arguments: str | Path, timeout: float = 120) -> Done:
    """Run ``python -m components`` with ``arguments``."""
    argv = [sys.executable, "-m", "components", *map(str, arguments)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)])
