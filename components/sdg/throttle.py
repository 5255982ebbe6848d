"""How many requests are in flight: fewer when the endpoint pushes back, slowly more when it does not."""

from __future__ import annotations

import asyncio
import time

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
        self._changed = asyncio.Condition()

    @property
    def limit(self) -> int:
        """Requests allowed in flight now."""
        return int(self._limit)

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < self.limit)
            self._in_flight += 1
        while (wait := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self._in_flight -= 1
            self._changed.notify(2)  # the limit may have grown by one, too

    def succeeded(self) -> None:
        """An answer came."""
        self._successes += 1
        if self._successes >= _SUCCESSES_TO_GROW:
            self._successes = 0
            self._limit = min(self._most, self._limit + 1)

    def pushed_back(self, seconds: float) -> None:
        """The endpoint asked for fewer requests, and for none within ``seconds``."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + seconds)
        if now >= self._burst_until:
            self._burst_until = now + max(seconds, _ONE_BURST_SECONDS)
            self._successes = 0
            self._limit = max(1.0, self._limit * _SHRINK)
