"""Hard negatives among vectors: what scores high, but below the margins of a query's positives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from components.core.retrieval.search import Vectors, as_tensor, dot, top_k

# Products of vectors computed at once where only some pairs are asked for.
_PAIRS = 65_536


@dataclass(frozen=True)
class Choice:
    """Which candidates become negatives; the settings of the same names in PrepConfig."""

    count: int
    margin: float = 1.0
    absolute_margin: float = 0.0
    range_min: int = 0
    range_max: int | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    @property
    def depth(self) -> int:
        """How many of the best candidates are needed."""
        return self.range_max or self.range_min + self.count


class Negatives(NamedTuple):
    """The negatives of each query: ``rows`` int64 and ``scores`` float32, [queries, count], best first.

    Of a row the first ``mined`` come from the rank range and those up to ``found`` from the ranks passed over; the rest
    means nothing. ``above`` counts the passages that the margins left out. The last three are int64 [queries].
    """

    rows: np.ndarray
    scores: np.ndarray
    mined: np.ndarray
    found: np.ndarray
    above: np.ndarray


def hard_negatives(
    queries: Vectors,
    passages: Vectors,
    *,
    positives: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]],
    choice: Choice,
    query_block: int | None = None,
    check: tuple[Vectors, Vectors] | None = None,
) -> Negatives:
    """The negatives of each query among ``passages``; there may be fewer than asked for.

    A passage may be one when it is not excluded and scores at most ``margin`` times the lowest score of the query's
    positives ("TopK-PercPos": NV-Retriever, arXiv 2407.15831), or that score itself where it is not positive and a
    share of it is no bound, and at least ``absolute_margin`` less than it. Of these candidates, best first, those
    from rank ``range_min`` (counted from 0) to ``range_max`` are eligible. Where they are too few, the ranks that were
    passed over fill up, nearest first. ``check`` are the vectors of the same queries and passages by a second model,
    by which the margins must hold as well.
    """
    pairs, banned = Pairs(positives), _Banned(Pairs(excluded))
    second = _Second(*check, _ceilings(pairs, *check, choice)) if check else None

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        banned.remove(scores, first_query, first_passage)
        if second:
            second.remove(scores, first_query, first_passage)

    found = top_k(
        queries,
        passages,
        choice.depth,
        exclude=exclude,
        ceilings=_ceilings(pairs, queries, passages, choice),
        query_block=query_block,
        label="mining hard negatives",
    )
    above = found.above + second.above.numpy() if second else found.above
    return _chosen(found.scores, found.positions, above, choice)


def _chosen(scores: np.ndarray, rows: np.ndarray, above: np.ndarray, choice: Choice) -> Negatives:
    """The negatives of each query among its candidates, [queries, depth], best first."""
    candidates = np.isfinite(scores).sum(axis=1, keepdims=True)
    first = np.minimum(choice.range_min, candidates)
    mined = np.minimum(first + choice.count, candidates) - first
    place = np.arange(choice.count)
    ranks = np.where(place < mined, first + place, first - 1 - (place - mined))
    if choice.sampling == "random":
        for number, (low, high, drawn) in enumerate(zip(first[:, 0], candidates[:, 0], mined[:, 0], strict=True)):
            pick = np.random.default_rng([choice.seed, number]).choice(high - low, drawn, replace=False)
            ranks[number, :drawn] = np.sort(pick + low)
    counts = (ranks >= 0).sum(axis=1)
    ranks = ranks.clip(0, scores.shape[1] - 1)
    return Negatives(
        np.take_along_axis(rows, ranks, 1), np.take_along_axis(scores, ranks, 1), mined[:, 0], counts, above
    )


class Pairs:
    """Queries and rows of passages, as ``numbers`` and ``rows``: int64 [pairs]."""

    def __init__(self, of_queries: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter(map(len, of_queries), dtype=np.int64, count=len(of_queries))
        self.queries = len(of_queries)
        self.numbers = np.repeat(np.arange(self.queries), lengths)
        self.rows = np.fromiter(itertools.chain.from_iterable(of_queries), dtype=np.int64, count=len(self.numbers))

    def scores(self, queries: Vectors, passages: Vectors) -> np.ndarray:
        """Dot product of each pair: float32 [pairs]."""
        found = np.empty(len(self.rows), dtype=np.float32)
        for start in range(0, len(self.rows), _PAIRS):
            part = slice(start, start + _PAIRS)
            found[part] = _products(queries, self.numbers[part], passages, self.rows[part])
        return found


def _products(queries: Vectors, numbers: np.ndarray, passages: Vectors, rows: np.ndarray) -> np.ndarray:
    if isinstance(passages, np.ndarray):
        return np.einsum("ij,ij->i", queries[numbers], passages[rows])
    chosen = [v[torch.from_numpy(at).to(v.device)].float() for v, at in ((queries, numbers), (passages, rows))]
    return (chosen[0] * chosen[1]).sum(dim=1).cpu().numpy()


def _ceilings(positives: Pairs, queries: Vectors, passages: Vectors, choice: Choice) -> np.ndarray:
    """The highest score that a negative of each query may have: float32 [queries]."""
    lowest = np.full(positives.queries, np.inf, dtype=np.float32)
    np.minimum.at(lowest, positives.numbers, positives.scores(queries, passages))
    share = np.where(lowest > 0, lowest.astype(np.float64) * choice.margin, lowest)
    return np.minimum(share, lowest.astype(np.float64) - choice.absolute_margin).astype(np.float32)


class _Banned:
    """Pairs that may not be found, so ordered that those of a block are found at once."""

    def __init__(self, pairs: Pairs) -> None:
        order = np.argsort(pairs.rows, kind="stable")
        self._numbers, self._rows = pairs.numbers[order], pairs.rows[order]

    def remove(self, scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        """Set the scores of the pairs inside the block to -inf."""
        start, end = np.searchsorted(self._rows, [first_passage, first_passage + scores.shape[1]])
        numbers, rows = self._numbers[start:end] - first_query, self._rows[start:end] - first_passage
        inside = (numbers >= 0) & (numbers < scores.shape[0])
        if inside.any():
            at = (torch.from_numpy(part[inside]).to(scores.device) for part in (numbers, rows))
            scores[tuple(at)] = -torch.inf


class _Second:
    """What a second model scores above its margins; ``above``, int64 [queries], counts what was not banned before."""

    def __init__(self, queries: Vectors, passages: Vectors, limits: np.ndarray) -> None:
        self._queries, self._passages = as_tensor(queries), as_tensor(passages)
        self._limits = torch.from_numpy(limits)
        self.above = torch.zeros(len(limits), dtype=torch.int64)

    def remove(self, scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        rows = slice(first_query, first_query + scores.shape[0])
        columns = slice(first_passage, first_passage + scores.shape[1])
        own = dot(self._queries[rows].to(scores.device), self._passages[columns].to(scores.device))
        over = (own > self._limits[rows, None].to(scores.device)) & scores.isfinite()
        self.above[rows] += over.sum(dim=1).cpu()
        scores.masked_fill_(over, -torch.inf)
