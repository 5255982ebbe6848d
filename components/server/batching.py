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

# A batch is padded to its longest text: shorter ones than this share of it cost less in a batch of their own.
_SHORTEST_SHARE = 0.6


class Overloaded(RuntimeError):
    """More texts wait than the queue takes."""


@dataclass(frozen=True)
class _Waiting:
    ids: list[int]
    done: asyncio.Future[np.ndarray]


class Batcher:
    """Feeds one model from many requests.

    The model computes ``workers`` batches at the same time. While it does, texts queue up; then the ``max_texts`` that
    have waited longest run next, those of like length together, at most ``max_tokens`` tokens with padding at once.
    Nothing ever waits for a batch to fill.
    """

    def __init__(
        self,
        model: OnnxModel,
        registry: CollectorRegistry,
        *,
        max_texts: int,
        max_tokens: int,
        max_queue: int,
        workers: int = 1,
    ) -> None:
        self._model, self._workers = model, workers
        self._max_texts, self._max_tokens, self._max_queue = max_texts, max_tokens, max_queue
        self._queue: deque[_Waiting] = deque()
        self._planned: deque[list[_Waiting]] = deque()
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="model")
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
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        """One batch after the other."""
        loop = asyncio.get_running_loop()
        while True:
            while not (self._planned or self._queue):
                self._arrived.clear()
                await self._arrived.wait()
            if not self._planned:
                self._planned.extend(self._next())
                continue
            batch = self._planned.popleft()
            self._batch_size.observe(len(batch))
            try:
                vectors = await loop.run_in_executor(self._threads, self._model.embed, [one.ids for one in batch])
            except Exception as error:
                _finish(batch, error)
            else:
                _finish(batch, vectors)

    def _next(self) -> list[list[_Waiting]]:
        """The longest-waiting texts, in batches of like length; those given up are skipped."""
        taken: list[_Waiting] = []
        while self._queue and len(taken) < self._max_texts:
            one = self._queue.popleft()
            if not one.done.cancelled():
                taken.append(one)
        batches: list[list[_Waiting]] = []
        for one in sorted(taken, key=lambda one: len(one.ids), reverse=True):
            longest = len(batches[-1][0].ids) if batches else 0
            fits = longest * (len(batches[-1]) + 1) <= self._max_tokens if batches else False
            if fits and len(one.ids) >= _SHORTEST_SHARE * longest:
                batches[-1].append(one)
            else:
                batches.append([one])
        # Whoever has waited longest is answered first.
        place = {id(one): number for number, one in enumerate(taken)}
        return sorted(batches, key=lambda batch: min(place[id(one)] for one in batch))


def _finish(batch: list[_Waiting], outcome: np.ndarray | Exception) -> None:
    for number, one in enumerate(batch):
        if one.done.cancelled():
            continue
        if isinstance(outcome, Exception):
            one.done.set_exception(outcome)
        else:
            one.done.set_result(outcome[number])
