"""What the suite promises to whoever runs it: no torch where no test asks for it, and no limit that load reaches."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in ROOT.glob("tests/**/*.py") if path != Path(__file__).resolve())
_SHORT_LIMITS = (
    re.compile(r"assert time\.(?:monotonic|time|perf_counter)\(\) - \w+ <=? \d"),
    re.compile(r"\.(?:communicate|wait|join)\(timeout=\d"),
)


@pytest.mark.parametrize("folder", ["tests", "tests/core", "tests/deploy", "tests/eval"])
def test_a_folders_fixtures_import_no_torch(folder: str) -> None:
    module = folder.replace("/", ".") + ".conftest"
    program = f"import sys, {module}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_test_fails_because_the_machine_is_busy() -> None:
    """A limit in seconds is LIMIT_SECONDS of tests/waiting.py; how long something takes is measured in CPU time."""
    short = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in FILES
        for pattern in _SHORT_LIMITS
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert short == []
