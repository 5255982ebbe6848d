"""How many requests are in flight: fewer when the endpoint pushes back, slowly more when it does not."""

from __future__ import annotations

import asyncio
import time
from collections import deque

_SHRINK = 0.75
_SUCCESSES_TO_GROW = 25
# One burst of refusals is one push-back, not as many as there were requests in flight.
_ONE_BURST_SECONDS = 2.0


class Throttle:
    """At most ``most`` at once; additive increase, multiplicative decrease. Use as ``async with throttle:``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._in_flight = 0
        self._successes = 0
        self._paused_until = self._burst_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """Requests allowed in flight now."""
        return int(self._limit)

    async def __aenter__(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
            while (wait := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        """Give turns to those who wait, in the order in which they came."""
        while self._waiting and self._in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._in_flight += 1
                turn.set_result(None)

    def record_success(self) -> None:
        """An answer came."""
        self._successes += 1
        if self._successes >= _SUCCESSES_TO_GROW:
            self._successes = 0
            self._limit = min(self._most, self._limit + 1)
            self._admit()

    def record_push_back(self, seconds: float) -> None:
        """The endpoint asked for fewer requests, and for none within ``seconds``."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if now >= self._burst_until:
            self._burst_until = now + max(seconds, _ONE_BURST_SECONDS)
            self._successes = 0
            self._limit = max(1.0, self._limit * _SHRINK)
