"""Exact nearest-neighbour search by dot product, in blocks, on the GPU when there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from components.core.encoder.checkpoint import default_device
from components.core.progress import Progress

Vectors = np.ndarray | Tensor
# Sets scores to -inf where a passage may not be found: (scores [queries, passages], first query, first passage).
Exclude = Callable[[Tensor, int, int], None]

# Queries and passages of one block of scores. On a CPU a block fits the cache, so that looking at the scores costs next
# to nothing beside the matrix product; on a GPU large ones keep it busy.
_BLOCKS = {"cpu": (256, 4096), "cuda": (10_240, 262_144)}
# So many passages, far apart in a block, of which the maximum is taken first: rows of groups then lie side by side.
_GROUP = {"cpu": 32, "cuda": 64}
# Of the GPU's free memory one block of scores takes at most this share: picking from it may copy it twice.
_SHARE_OF_MEMORY = 0.2


class SearchResult(NamedTuple):
    """The best passages of every query, best first: ``scores`` float32, ``positions`` int64, [queries, k].

    A row of which too few passages may be found ends with scores of -inf, whose positions mean nothing. ``above``,
    int64 [queries], counts the passages that score higher than the ceiling.
    """

    scores: np.ndarray
    positions: np.ndarray
    above: np.ndarray


def top_k(
    queries: Vectors,
    passages: Vectors,
    k: int,
    *,
    exclude: Exclude | None = None,
    ceilings: np.ndarray | None = None,
    query_block: int | None = None,
    passage_block: int | None = None,
    label: str = "searching",
) -> SearchResult:
    """The min(k, m) best of the passages [m, d] for every one of the queries [n, d].

    Both are arrays in main memory, or tensors, which stay on their device. Products have the vectors' own precision
    (float32 or bfloat16), sums and scores are float32. ``ceilings``, float32 [n]: what scores higher is counted and not
    found. Beside inputs and result, memory holds one block of scores, ``query_block`` by ``passage_block``.
    """
    device = passages.device if isinstance(passages, Tensor) else default_device()
    asked, searched = as_tensor(queries), as_tensor(passages)
    best = _Best(len(asked), min(k, len(searched)), device, ceilings)
    height, width = _block(device, query_block, passage_block)
    with Progress(label, total=len(asked) * len(searched), unit="scores") as progress:
        # Passages outside: there are more of them, and each comes to the device once.
        for first_passage in range(0, len(searched), width):
            block = searched[first_passage : first_passage + width].to(device)
            for first_query in range(0, len(asked), height):
                scores = dot(asked[first_query : first_query + height].to(device), block)
                if exclude is not None:
                    exclude(scores, first_query, first_passage)
                best.add(scores, first_query, first_passage)
                progress.add(scores.numel())
                # The next block is made before this name is bound again.
                del scores
    return best.found(len(searched))


def as_tensor(vectors: Vectors) -> Tensor:
    """The same numbers, not copied."""
    return torch.from_numpy(vectors) if isinstance(vectors, np.ndarray) else vectors


def dot(queries: Tensor, passages: Tensor) -> Tensor:
    """Scores of vectors on one device: float32 [queries, passages]."""
    if queries.dtype == torch.float32:
        return queries @ passages.T
    if queries.is_cuda:
        return torch.mm(queries, passages.T, out_dtype=torch.float32)
    return queries.float() @ passages.float().T


def _block(device: torch.device, queries: int | None, passages: int | None) -> tuple[int, int]:
    height, width = _BLOCKS[device.type]
    height, width = queries or height, passages or width
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free -= torch.cuda.memory_allocated(device)
        width = min(width, max(int(free * _SHARE_OF_MEMORY) // (4 * height), _GROUP["cuda"]))
    return height, width


class _Best:
    """The best passages of every query among the blocks of scores seen so far."""

    def __init__(self, queries: int, k: int, device: torch.device, ceilings: np.ndarray | None) -> None:
        self._k, self._group = k, _GROUP[device.type]
        self._scores = torch.full((queries, k), -torch.inf, device=device)
        self._positions = torch.zeros((queries, k), dtype=torch.int64, device=device)
        self._above = torch.zeros(queries, dtype=torch.int64, device=device)
        self._ceilings = None if ceilings is None else torch.from_numpy(ceilings).to(device)

    def add(self, scores: Tensor, first_query: int, first_passage: int) -> None:
        """Take note of a block. The scores are read once, for the greatest of each group of passages.

        Only a group whose greatest is above the ceiling holds others that are; only one whose greatest is better than
        the worst of the best so far can change these; and the k best lie in the k groups with the greatest maxima.
        """
        if missing := -scores.shape[1] % self._group:
            scores = nn.functional.pad(scores, (0, missing), value=-torch.inf)
        grouped = scores.unflatten(1, (self._group, -1))
        maxima = grouped.amax(dim=1)
        rows = slice(first_query, first_query + len(scores))
        if self._ceilings is not None:
            self._cut_off(grouped, maxima, rows, self._ceilings[rows])
        better = maxima > self._scores[rows, -1:]
        groups = min(self._k, int(better.sum(dim=1).amax()))
        if groups * self._group * 2 >= scores.shape[1]:
            places = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
            self._merge(rows, scores, places + first_passage)
        elif groups:
            chosen = maxima.topk(groups, dim=1).indices[:, None].expand(-1, self._group, -1)
            member = torch.arange(self._group, device=scores.device)[:, None] * maxima.shape[1]
            places = (chosen + member).flatten(1)
            self._merge(rows, grouped.gather(2, chosen).flatten(1), places + first_passage)

    def _cut_off(self, grouped: Tensor, maxima: Tensor, rows: slice, ceilings: Tensor) -> None:
        """Count the scores above ``ceilings``, float32 [rows], and set them to -inf."""
        row, group = (maxima > ceilings[:, None]).nonzero(as_tuple=True)
        if not len(row):
            return
        inside = grouped[row, :, group]
        over = inside > ceilings[row, None]
        self._above[rows].index_add_(0, row, over.sum(dim=1))
        inside.masked_fill_(over, -torch.inf)
        grouped[row, :, group], maxima[row, group] = inside, inside.amax(dim=1)

    def _merge(self, rows: slice, scores: Tensor, positions: Tensor) -> None:
        every = torch.cat([self._scores[rows], scores], dim=1)
        merged = every.topk(self._k, dim=1)
        positions = torch.cat([self._positions[rows], positions], dim=1)
        self._scores[rows], self._positions[rows] = merged.values, positions.gather(1, merged.indices)

    def found(self, passages: int) -> SearchResult:
        positions = self._positions.clamp_(max=max(passages - 1, 0))
        return SearchResult(*(part.cpu().numpy() for part in (self._scores, positions, self._above)))
