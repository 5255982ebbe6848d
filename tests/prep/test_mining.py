"""Mined negatives are those of a full score matrix in NumPy, for every option."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.prep.mining import hard_negatives


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 40)),
    count=st.integers(1, 50),
    margin=st.sampled_from([0.1, 0.5, 0.75, 0.95, 1.0]),
    query_block=st.integers(1, 9),
)
def test_equals_brute_force(seed: int, sizes: tuple[int, int], count: int, margin: float, query_block: int) -> None:
    rng = np.random.default_rng(seed)
    # Products of quarters are exact, so that a tie or the bound itself does not depend on the order of summation.
    queries, passages = ((rng.integers(-8, 9, (n, 3)) / 4).astype(np.float32) for n in sizes)
    pick = [rng.permutation(sizes[1]) for _ in queries]
    positives = [order[: rng.integers(1, 3)].tolist() for order in pick]
    excluded = [order[: rng.integers(2, 5)].tolist() for order in pick]
    found = hard_negatives(
        queries,
        passages,
        positives=positives,
        excluded=excluded,
        count=count,
        margin=margin,
        query_block=query_block,
    )
    every = queries @ passages.T
    for number, (rows, scores) in enumerate(found):
        lowest = every[number, positives[number]].min()
        bound = np.float32(float(lowest) * margin) if lowest > 0 else lowest
        allowed = [row for row in range(len(passages)) if row not in excluded[number] and every[number, row] <= bound]
        expected = sorted((every[number, row] for row in allowed), reverse=True)[:count]
        assert scores == [float(score) for score in expected]
        assert [float(every[number, row]) for row in rows] == scores
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(allowed)
        assert np.isfinite(scores).all()
