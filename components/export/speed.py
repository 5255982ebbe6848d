"""How fast a session answers."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass

import numpy as np

from components.export.sessions import Session

# One short query; the batch that the recipe tunes its engine for; the largest it allows.
SHAPES = ((1, 32), (16, 128), (64, 256))
_RUNS = 5
# On a CPU the largest shape of a large model takes minutes.
_LONGEST_CALL_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Median time of one call with ``batch`` texts of ``length`` tokens."""

    batch: int
    length: int
    milliseconds: float

    @property
    def tokens_per_second(self) -> float:
        return round(1000 * self.batch * self.length / self.milliseconds, 1)


def measure_speed(session: Session, longest: int, token: int) -> list[Speed]:
    """Of the shapes up to ``longest`` tokens, made of ``token``; those that would take too long are left out."""
    found: list[Speed] = []
    for batch, length in SHAPES:
        length = min(length, longest)
        if found and found[-1].milliseconds * batch * length / (found[-1].batch * found[-1].length) > (
            1000 * _LONGEST_CALL_SECONDS
        ):
            _log.info("%s: %d x %d tokens not measured, it would take too long", session.name, batch, length)
            break
        ids = np.full((batch, length), token, dtype=np.int64)
        found.append(Speed(batch, length, _median_ms(session, ids)))
        _log.info("%s: %d x %d tokens in %.2f ms", session.name, batch, length, found[-1].milliseconds)
    return found


def _median_ms(session: Session, ids: np.ndarray) -> float:
    mask = np.ones_like(ids)
    seconds: list[float] = []
    session.embed(ids, mask)
    begun = time.perf_counter()
    while len(seconds) < _RUNS and (not seconds or time.perf_counter() - begun < _PATIENCE_SECONDS):
        started = time.perf_counter()
        session.embed(ids, mask)
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 3)
