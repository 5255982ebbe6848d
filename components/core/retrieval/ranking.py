"""Metrics of one query's search results."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ndcg_at(k: int, ranked: Sequence[str], judged: dict[str, int]) -> float:
    """Return the normalised discounted cumulative gain of the ids ``ranked``, best first, as trec_eval's ndcg_cut.

    ``judged`` is the gain of each id (0 where it has none); at least one is above 0. Järvelin & Kekäläinen (2002).
    """
    ideal = sorted((max(score, 0) for score in judged.values()), reverse=True)
    return _dcg([max(judged.get(name, 0), 0) for name in ranked[:k]]) / _dcg(ideal[:k])


def _dcg(gains: list[int]) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
