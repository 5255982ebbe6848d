"""When training states are saved, and saving them while training goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from components.core.store.errors import summarize_error
from components.finetune.resume.checkpoints import Checkpoints, Saved

_log = logging.getLogger(__name__)
# Tensors in the host's memory, and the rest as JSON values.
State = tuple[Mapping[str, Tensor], Mapping[str, Any]]


class Autosave:
    """Saves to ``checkpoints`` every so many seconds and steps, in a thread of its own; None saves nothing.

    A save that fails is a warning: earlier states still stand, and the next one may work.
    """

    def __init__(self, checkpoints: Checkpoints | None, *, seconds: float | None, steps: int | None) -> None:
        self.enabled = checkpoints is not None
        self._checkpoints, self._seconds, self._steps = checkpoints, seconds, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="autosave")
        self._running: Future[None] | None = None
        self._last_step, self._last_time = 0, time.monotonic()

    def newest(self) -> Saved | None:
        """The state to continue from, if there is one."""
        saved = self._checkpoints.newest() if self._checkpoints else None
        self._last_step = saved.step if saved else 0
        return saved

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` should be saved. Saves by time leave out what a slow storage cannot take."""
        if not self.enabled:
            return False
        by_step = self._steps is not None and step % self._steps == 0
        late = self._seconds is not None and time.monotonic() - self._last_time >= self._seconds
        return by_step or (late and (self._running is None or self._running.done()))

    def saved(self, step: int) -> bool:
        """Whether the state after ``step`` is saved, or being written, or none ever is."""
        return self._checkpoints is None or step == self._last_step

    def save(self, step: int, take: Callable[[], State]) -> None:
        """Take the state after ``step`` and write it in the background, unless it is saved already.

        The one before is written to its end first: ``take`` may use its memory again.
        """
        if self._checkpoints is None or step == self._last_step:
            return
        self.wait()
        started = time.monotonic()
        tensors, about = take()
        copied = time.monotonic() - started
        self._running = self._pool.submit(self._write, self._checkpoints, step, tensors, about, copied)
        self._last_step, self._last_time = step, time.monotonic()

    def wait(self) -> bool:
        """Wait until nothing is being written; whether the last state is durable."""
        if self._running is None:
            return True
        error = self._running.exception()
        if error is not None:
            _log.warning("a training state could not be saved (%s); earlier ones still stand", summarize_error(error))
            self._running = None
            self._last_step = 0
        return error is None

    def _write(
        self,
        checkpoints: Checkpoints,
        step: int,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any],
        copied: float,
    ) -> None:
        started = time.monotonic()
        checkpoints.save(step, tensors, about)
        _log.info(
            "state after step %d saved: %.2f GB, copied in %.2f s, written in %.1f s beside the training",
            step, sum(tensor.nbytes for tensor in tensors.values()) / 1e9, copied, time.monotonic() - started,
        )  # fmt: skip

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        self._pool.shutdown()
