"""Progress of long work: a bar on a terminal, a line every few seconds in a pod."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

LINE_EVERY_SECONDS = 10.0
_log = logging.getLogger(__name__)
Item = TypeVar("Item")


class Progress:
    """Counts work done towards ``total``.

    >>> with Progress("encoding", total=1000, unit="passages") as progress:
    ...     progress.add(32, loss=0.5)
    """

    def __init__(self, what: str, *, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = self._last_line = time.monotonic()
        self._first: tuple[int, float] | None = None  # units done at first, and when
        # Of several ranks, the one that logs shows it.
        shown = sys.stderr.isatty() and _log.isEnabledFor(logging.INFO)
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", leave=False) if shown else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            seconds = time.monotonic() - self._started
            _log.info("%s: %d %s in %.1f s", self.what, self.done, self.unit, seconds)

    def add(self, count: int = 1, **figures: float) -> None:
        """``count`` more units are done; ``figures`` stand beside them."""
        self.done += count
        if self._bar is not None:
            self._bar.set_postfix({name: _short(value) for name, value in figures.items()}, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = self.done, now
        if now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            _log.info("%s", self._line(now, figures))

    def _line(self, now: float, figures: dict[str, float]) -> str:
        rate = self._rate(now)
        line = f"{self.what}: {self.done}"
        if self.total:
            line += f" of {self.total} {self.unit}, {rate:.1f}/s"
            line += f", {max(self.total - self.done, 0) / rate:.0f} s to go" if rate else ""
        else:
            line += f" {self.unit}, {rate:.1f}/s"
        return line + "".join(f", {name} {_short(value)}" for name, value in figures.items())

    def _rate(self, now: float) -> float:
        """Units per second after the first piece, which pays for compiling; with it while there is no other."""
        done, since = self._first or (0, self._started)
        if self.done == done:
            done, since = 0, self._started
        return (self.done - done) / max(now - since, 1e-9)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def track(items: Iterable[Item], what: str, *, unit: str, total: int | None = None) -> Iterator[Item]:
    """``items``, with their progress shown; give ``total`` when ``items`` has no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.add()
