"""Time in tests: they wait for events, never for a time, and no limit of theirs is one that a busy machine reaches."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

# Only a fault takes as long: tests that are beside many others on a small machine are ready in a tenth of it.
LIMIT_SECONDS = 300.0
_POLL_SECONDS = 0.01


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    """Return once ``condition`` holds. Fails when ``process``, which should bring it about, ends before."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"the process ended with {process.returncode} before it happened")
        assert time.monotonic() < deadline, f"it did not happen within {LIMIT_SECONDS:g} s"
        time.sleep(_POLL_SECONDS)


class SleepClock:
    """Stands for the module ``time`` in a module under test: only sleep moves it, in each thread for itself.

    A loop that looks every second for a minute looks sixty times, however slow the machine is, and takes no minute.
    """

    def __init__(self) -> None:
        self._slept = threading.local()

    def monotonic(self) -> float:
        return getattr(self._slept, "seconds", 0.0)

    def sleep(self, seconds: float) -> None:
        self._slept.seconds = self.monotonic() + seconds
        time.sleep(min(seconds, _POLL_SECONDS))
