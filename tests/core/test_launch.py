"""Several ranks look from outside like one process: what they return, say and die of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.distributed.launch import count_processes, launch
from components.core.errors import InputError, StageError
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

WAITS = """
import sys
from components.core.errors import StageError
from components.core.distributed.launch import launch
try:
    launch("tests.core.ranked:last_words", {"file": sys.argv[1]}, 2)
except StageError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_ranks_agree_on_numbers_and_sums() -> None:
    found = launch("tests.core.ranked:agree", {"offset": 10}, 2)
    assert found["size"] == 2 and found["total"] == [20, 1] and found["greatest"] == [1]
    assert found["any"] == [True, False] and found["from_first"] == {"rank": 0} and found["told"] == [0, 0]
    assert found["sum"] == [4.5, -6.0, 3 * 2.0**-12]
    assert found["narrow"] == pytest.approx(found["sum"], rel=2**-7)


def test_the_gradient_flows_to_the_rank_that_made_a_vector() -> None:
    """The loss is w (1 2) . w (2 3); its derivative at w = 3 is the same, however the vectors are spread."""
    found = launch("tests.core.ranked:gather", {}, 2)
    assert found["matrix"] == [[6, 9], [3, 6]]
    assert found["gradient"] == 2 * 3 * (1 * 2 + 2 * 3)


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("input", 2, "valve 7 is open: close it"),
        ("action", 3, "valve 7 is open: close it"),
        ("killed", 75, "a process was killed by SIGKILL"),
        ("stands still", 75, "run again"),
        ("bug", 1, "no such case: this is a bug"),
    ],
)
def test_what_fails_one_rank_fails_the_caller(how: str, code: int, message: str) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    started = time.monotonic()
    with pytest.raises(StageError, match=message) as failed:
        launch("tests.core.ranked:fail", {"how": how}, 2)
    assert failed.value.exit_code == code
    # Not after the hours for which one collective operation is waited for.
    assert time.monotonic() - started < LIMIT_SECONDS
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_process_that_started_them(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "pid")], stderr=subprocess.PIPE, text=True)
    files = [tmp_path / "pid.0", tmp_path / "pid.1"]
    wait_for(lambda: all(file.is_file() and file.read_text() for file in files), process)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_SECONDS)[1]
    if number == signal.SIGTERM:
        assert process.returncode == 75 and "rank 0 saved its work: run again" in said
        assert "Traceback" not in said
    wait_for(lambda: not any(_lives(int(file.read_text())) for file in files))


def test_on_a_cpu_one_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert count_processes(None) == 1 and count_processes(3) == 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert count_processes(None) == 4 and count_processes(2) == 2
    with pytest.raises(InputError, match="num_processes = 8: 4 GPUs are visible"):
        count_processes(8)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
