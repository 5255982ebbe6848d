"""Hard negatives among vectors: what scores high, but below the margins of a query's positives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from components.core.retrieval.search import Vectors, as_tensor, dot, top_k
from components.prep.component import HardNegativeSettings

# Products of vectors computed at once where only some pairs are asked for.
_PAIRS_AT_ONCE = 65_536


class HardNegatives(NamedTuple):
    """The negatives of each query: ``rows`` int64 and ``scores`` float32, [queries, count], best first.

    Of a row the first ``mined`` come from the rank range, and those up to ``total`` from the ranks passed over; the
    rest means nothing. ``above`` counts the passages that the margins left out. The last three are int64 [queries].
    """

    rows: np.ndarray
    scores: np.ndarray
    mined: np.ndarray
    total: np.ndarray
    above: np.ndarray


def find_hard_negatives(
    queries: Vectors,
    passages: Vectors,
    *,
    positives: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]],
    settings: HardNegativeSettings,
    seed: int = 0,
    query_block: int | None = None,
    check: tuple[Vectors, Vectors] | None = None,
) -> HardNegatives:
    """Find the negatives of each query among ``passages``; there may be fewer than asked for.

    A passage may be one when it is not excluded and scores at most ``hard_neg_margin`` times the lowest score of the
    query's positives ("TopK-PercPos": NV-Retriever, arXiv 2407.15831), or that score itself where it is not positive
    and a share of it is no bound, and at least ``hard_neg_absolute_margin`` less than it. Of these candidates, best
    first, those from rank ``hard_neg_range_min`` (counted from 0) to ``hard_neg_range_max`` are eligible. Where they
    are too few, the ranks that were passed over fill up, nearest first.

    Args:
        queries: Vectors, float32 or bfloat16 [queries, dimension].
        passages: Vectors of the same type, [passages, dimension].
        positives: Rows of ``passages`` that answer each query, one at least.
        excluded: Rows of ``passages`` that are no negatives of each query, its positives among them.
        settings: Which candidates become negatives.
        seed: Decides which candidates are drawn when they are sampled.
        query_block: Queries scored at once; None chooses by device.
        check: Vectors of the same queries and passages by a second model, by which the margins must hold as well.
    """
    pairs, exclusion = QueryPassagePairs(positives), _ExclusionMask(QueryPassagePairs(excluded))
    second = _CheckerMask(*check, _compute_ceilings(pairs, *check, settings)) if check else None

    def exclude(scores: Tensor, first_query: int, first_passage: int) -> None:
        exclusion.apply(scores, first_query, first_passage)
        if second:
            second.apply(scores, first_query, first_passage)

    candidates = top_k(
        queries,
        passages,
        settings.candidate_depth,
        exclude=exclude,
        ceilings=_compute_ceilings(pairs, queries, passages, settings),
        query_block=query_block,
        label="mining hard negatives",
    )
    above = candidates.above + second.above.numpy() if second else candidates.above
    return _select_negatives(candidates.scores, candidates.positions, above, settings, seed)


def _select_negatives(
    scores: np.ndarray, rows: np.ndarray, above: np.ndarray, settings: HardNegativeSettings, seed: int
) -> HardNegatives:
    """Select the negatives of each query among its candidates, [queries, depth], best first."""
    count = settings.hard_negatives_to_mine
    candidates = np.isfinite(scores).sum(axis=1, keepdims=True)
    first = np.minimum(settings.hard_neg_range_min, candidates)
    mined = np.minimum(first + count, candidates) - first
    place = np.arange(count)
    ranks = np.where(place < mined, first + place, first - 1 - (place - mined))
    if settings.hard_neg_sampling == "random":
        for number, (low, high, drawn) in enumerate(zip(first[:, 0], candidates[:, 0], mined[:, 0], strict=True)):
            sample = np.random.default_rng([seed, number]).choice(high - low, drawn, replace=False)
            ranks[number, :drawn] = np.sort(sample + low)
    total = (ranks >= 0).sum(axis=1)
    ranks = ranks.clip(0, scores.shape[1] - 1)
    return HardNegatives(
        np.take_along_axis(rows, ranks, 1), np.take_along_axis(scores, ranks, 1), mined[:, 0], total, above
    )


class QueryPassagePairs:
    """Pairs of a query and a passage, as ``query_rows`` and ``passage_rows``: int64 [pairs]."""

    def __init__(self, rows_by_query: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter(map(len, rows_by_query), dtype=np.int64, count=len(rows_by_query))
        self.queries = len(rows_by_query)
        self.query_rows = np.repeat(np.arange(self.queries), lengths)
        passage_rows = itertools.chain.from_iterable(rows_by_query)
        self.passage_rows = np.fromiter(passage_rows, dtype=np.int64, count=len(self.query_rows))

    def compute_scores(self, queries: Vectors, passages: Vectors) -> np.ndarray:
        """Return the dot product of each pair: float32 [pairs]."""
        scores = np.empty(len(self.passage_rows), dtype=np.float32)
        for start in range(0, len(scores), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            scores[part] = _dot_pairs(queries, self.query_rows[part], passages, self.passage_rows[part])
        return scores


def _dot_pairs(queries: Vectors, query_rows: np.ndarray, passages: Vectors, passage_rows: np.ndarray) -> np.ndarray:
    if isinstance(passages, np.ndarray) and isinstance(queries, np.ndarray):
        products: np.ndarray = np.einsum("ij,ij->i", queries[query_rows], passages[passage_rows])
        return products
    first, second = (
        vectors[torch.from_numpy(rows).to(vectors.device)].float()
        for vectors, rows in ((as_tensor(queries), query_rows), (as_tensor(passages), passage_rows))
    )
    return (first * second).sum(dim=1).cpu().numpy()


def _compute_ceilings(
    positives: QueryPassagePairs, queries: Vectors, passages: Vectors, settings: HardNegativeSettings
) -> np.ndarray:
    """Return the highest score that a negative of each query may have: float32 [queries]."""
    lowest = np.full(positives.queries, np.inf, dtype=np.float32)
    np.minimum.at(lowest, positives.query_rows, positives.compute_scores(queries, passages))
    share = np.where(lowest > 0, lowest.astype(np.float64) * settings.hard_neg_margin, lowest)
    return np.minimum(share, lowest.astype(np.float64) - settings.hard_neg_absolute_margin).astype(np.float32)


class _ExclusionMask:
    """Pairs that may not be found, sorted by passage, so that those of a block are looked up at once."""

    def __init__(self, pairs: QueryPassagePairs) -> None:
        order = np.argsort(pairs.passage_rows, kind="stable")
        self._query_rows, self._passage_rows = pairs.query_rows[order], pairs.passage_rows[order]

    def apply(self, scores: Tensor, first_query: int, first_passage: int) -> None:
        """Set the scores of the pairs inside the block to -inf."""
        start, end = np.searchsorted(self._passage_rows, [first_passage, first_passage + scores.shape[1]])
        rows, columns = self._query_rows[start:end] - first_query, self._passage_rows[start:end] - first_passage
        inside = (rows >= 0) & (rows < scores.shape[0])
        if inside.any():
            places = (torch.from_numpy(part[inside]).to(scores.device) for part in (rows, columns))
            scores[tuple(places)] = -torch.inf


class _CheckerMask:
    """What a second model scores above its margins.

    ``above``, int64 [queries], counts those that were not excluded before.
    """

    def __init__(self, queries: Vectors, passages: Vectors, ceilings: np.ndarray) -> None:
        self._queries, self._passages = as_tensor(queries), as_tensor(passages)
        self._ceilings = torch.from_numpy(ceilings)
        self.above = torch.zeros(len(ceilings), dtype=torch.int64)

    def apply(self, scores: Tensor, first_query: int, first_passage: int) -> None:
        """Set the scores of passages that the second model scores too high to -inf."""
        rows = slice(first_query, first_query + scores.shape[0])
        columns = slice(first_passage, first_passage + scores.shape[1])
        checked = dot(self._queries[rows].to(scores.device), self._passages[columns].to(scores.device))
        too_high = (checked > self._ceilings[rows, None].to(scores.device)) & scores.isfinite()
        self.above[rows] += too_high.sum(dim=1).cpu()
        scores.masked_fill_(too_high, -torch.inf)
