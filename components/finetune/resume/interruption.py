"""What ends training from outside or by standing still: SIGTERM, and no progress."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from components.core.distributed.process_group import ProcessGroup

_log = logging.getLogger(__name__)
TRY_AGAIN = 75


class Interrupted(BaseException):
    """SIGTERM came. No Exception: compilers and libraries that are interrupted would take it for a fault of theirs."""


class Interruption:
    """Turns SIGTERM into ``Interrupted``: at once inside ``at_once``, elsewhere when ``check`` is called next.

    Several ranks stop together, at the next ``check``: one that left at once would be waited for by the others. Signals
    reach the main thread only; elsewhere this does nothing.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        self._process_group = process_group or ProcessGroup()
        self._came = self._may_raise = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be left at any point, such as computing a gradient."""
        self.check()
        self._may_raise = not self._process_group.is_distributed
        try:
            yield
        except Exception:
            self._may_raise = False
            if not self._process_group.is_distributed:
                self.check()  # what an interrupted library made of it counts no more
            raise
        finally:
            self._may_raise = False
        self.check()

    def check(self) -> None:
        """Raise Interrupted when SIGTERM came, to one rank at least; all ranks call it."""
        if self._process_group.all_reduce_any(self._came):
            raise Interrupted

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._may_raise:
            self._may_raise = False
            raise Interrupted


class Watchdog:
    """Ends the process with code 75 and the stacks of all threads when ``beat`` is not called for ``seconds``.

    A GPU that hangs or a network that is gone raises nothing: without this the pod waits, and is paid for, until
    somebody looks. None watches nothing.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self.beat()
            threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._over.wait(min(seconds / 10, 10.0)):
            if time.monotonic() - self._last < seconds:
                continue
            _log.error("no progress for %g seconds; where every thread stands:", seconds)
            stderr = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback(file=stderr, all_threads=True)
            print("error: training made no progress: run again; it continues from checkpoint_uri", file=stderr)
            stderr.flush()
            os._exit(TRY_AGAIN)
