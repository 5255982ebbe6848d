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
class _QueuedText:
    ids: list[int]
    done: asyncio.Future[np.ndarray]


class Batcher:
    """Queue of texts that feeds one model from many requests.

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
        self._queue: deque[_QueuedText] = deque()
        self._planned: deque[list[_QueuedText]] = deque()
        self._arrived = asyncio.Event()
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="model")
        self._batch_size = Histogram(
            "nemotron_embed_batch_texts", "Texts in a batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        Gauge("nemotron_embed_queued_texts", "Texts waiting", registry=registry).set_function(lambda: len(self._queue))

    async def embed(self, ids: Sequence[list[int]]) -> np.ndarray:
        """Return the vectors of tokenised texts, float32 [len(ids), dimension]. Raises Overloaded for a full queue."""
        if len(self._queue) + len(ids) > self._max_queue:
            raise Overloaded(f"{len(self._queue)} texts wait, the queue takes {self._max_queue}")
        loop = asyncio.get_running_loop()
        queued = [_QueuedText(row, loop.create_future()) for row in ids]
        self._queue.extend(queued)
        self._arrived.set()
        return np.stack(await asyncio.gather(*(text.done for text in queued)))

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        """Compute one batch after the other."""
        loop = asyncio.get_running_loop()
        while True:
            while not (self._planned or self._queue):
                self._arrived.clear()
                await self._arrived.wait()
            if not self._planned:
                self._planned.extend(self._plan_batches())
                continue
            batch = self._planned.popleft()
            self._batch_size.observe(len(batch))
            try:
                vectors = await loop.run_in_executor(self._threads, self._model.embed, [text.ids for text in batch])
            except Exception as error:
                _resolve(batch, error)
            else:
                _resolve(batch, vectors)

    def _plan_batches(self) -> list[list[_QueuedText]]:
        """Take the longest-waiting texts, skip those given up, and group them into batches of like length."""
        taken: list[_QueuedText] = []
        while self._queue and len(taken) < self._max_texts:
            text = self._queue.popleft()
            if not text.done.cancelled():
                taken.append(text)
        batches: list[list[_QueuedText]] = []
        for text in sorted(taken, key=lambda text: len(text.ids), reverse=True):
            longest = len(batches[-1][0].ids) if batches else 0
            fits = longest * (len(batches[-1]) + 1) <= self._max_tokens if batches else False
            if fits and len(text.ids) >= _SHORTEST_SHARE * longest:
                batches[-1].append(text)
            else:
                batches.append([text])
        # Whoever has waited longest is answered first.
        position = {id(text): number for number, text in enumerate(taken)}
        return sorted(batches, key=lambda batch: min(position[id(text)] for text in batch))


def _resolve(batch: list[_QueuedText], outcome: np.ndarray | Exception) -> None:
    """Hand every text of the batch its vector, or the error of the model."""
    for number, text in enumerate(batch):
        if text.done.cancelled():
            continue
        if isinstance(outcome, Exception):
            text.done.set_exception(outcome)
        else:
            text.done.set_result(outcome[number])
