"""Dynamic batching: texts of requests that wait at the same time go through the model together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, Histogram

from components.server.model import OnnxModel


class Overloaded(RuntimeError):
    """More texts wait than the queue takes."""


@dataclass(frozen=True)
class _Waiting:
    ids: list[int]
    done: asyncio.Future[np.ndarray]


class Batcher:
    """Feeds one model from many requests.

    While the model works, texts queue up; then the next ``max_texts`` of them, at most ``max_tokens`` tokens with
    padding, run as one batch. Nothing ever waits for a batch to fill.
    """

    def __init__(
        self, model: OnnxModel, registry: CollectorRegistry, *, max_texts: int, max_tokens: int, max_queue: int
    ) -> None:
        self._model = model
        self._max_texts, self._max_tokens, self._max_queue = max_texts, max_tokens, max_queue
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._batch_size = Histogram(
            "nemotron_embed_batch_texts", "Texts in a batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        Gauge("nemotron_embed_queued_texts", "Texts waiting", registry=registry).set_function(lambda: len(self._queue))

    async def embed(self, ids: Sequence[list[int]]) -> np.ndarray:
        """Vectors of tokenised texts: float32 [len(ids), dimension]. Raises Overloaded when too many wait."""
        if len(self._queue) + len(ids) > self._max_queue:
            raise Overloaded(f"{len(self._queue)} texts wait, the queue takes {self._max_queue}")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(row, loop.create_future()) for row in ids]
        self._queue.extend(waiting)
        self._arrived.set()
        return np.stack(await asyncio.gather(*(one.done for one in waiting)))

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._next():
                self._batch_size.observe(len(batch))
                try:
                    vectors = await loop.run_in_executor(self._thread, self._model.embed, [one.ids for one in batch])
                except Exception as error:
                    _finish(batch, error)
                else:
                    _finish(batch, vectors)

    def _next(self) -> list[_Waiting]:
        """The texts that run next: the longest-waiting ones, as many as fit; those given up are skipped."""
        batch: list[_Waiting] = []
        longest = 0
        while self._queue and len(batch) < self._max_texts:
            if self._queue[0].done.cancelled():
                self._queue.popleft()
                continue
            longest = max(longest, len(self._queue[0].ids))
            if batch and longest * (len(batch) + 1) > self._max_tokens:
                break
            batch.append(self._queue.popleft())
        return batch


def _finish(batch: list[_Waiting], outcome: np.ndarray | Exception) -> None:
    for number, one in enumerate(batch):
        if one.done.cancelled():
            continue
        if isinstance(outcome, Exception):
            one.done.set_exception(outcome)
        else:
            one.done.set_result(outcome[number])
