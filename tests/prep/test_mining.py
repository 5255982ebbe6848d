"""MinedExample negatives are those of a full score matrix in NumPy, for every option."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.prep.component import HardNegativeSettings
from components.prep.mine.hard_negatives import HardNegatives, find_hard_negatives
from tests.prep.settings import negatives

CHOICES = st.builds(
    lambda count, first, room, **other: negatives(
        count, range_min=first, range_max=None if room is None else first + count + room, **other
    ),
    count=st.integers(1, 12),
    first=st.integers(0, 12),
    room=st.none() | st.integers(0, 12),
    margin=st.sampled_from([0.1, 0.5, 0.75, 0.95, 1.0]),
    absolute_margin=st.sampled_from([0.0, 0.25, 1.0, 4.0]),
)


def listed(found: HardNegatives) -> list[list[tuple[int, float, str]]]:
    """Row, score and origin of each negative, by query."""
    return [
        [
            (int(found.rows[n, i]), float(found.scores[n, i]), "mined" if i < found.mined[n] else "filled")
            for i in range(found.total[n])
        ]
        for n in range(len(found.total))
    ]


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 40)),
    choice=CHOICES,
    sampled=st.booleans(),
    draw=st.integers(0, 5),
    query_block=st.integers(1, 9),
    tensors=st.booleans(),
    checked=st.booleans(),
)
def test_equals_brute_force(
    seed: int,
    sizes: tuple[int, int],
    choice: HardNegativeSettings,
    sampled: bool,
    draw: int,
    query_block: int,
    tensors: bool,
    checked: bool,
) -> None:
    if sampled and choice.hard_neg_range_max is not None:
        choice = choice.model_copy(update={"hard_neg_sampling": "random"})
    rng = np.random.default_rng(seed)
    # Products of quarters are exact, so that a tie or the bound itself does not depend on the order of summation.
    queries, passages = ((rng.integers(-8, 9, (n, 3)) / 4).astype(np.float32) for n in sizes)
    second = tuple((rng.integers(-8, 9, (n, 2)) / 4).astype(np.float32) for n in sizes) if checked else None
    pick = [rng.permutation(sizes[1]) for _ in queries]
    positives = [order[: rng.integers(1, 3)].tolist() for order in pick]
    excluded = [order[: rng.integers(2, 5)].tolist() for order in pick]
    given_vectors = [torch.from_numpy(v) if tensors else v for v in (queries, passages)]
    result = find_hard_negatives(
        *given_vectors,
        positives=positives,
        excluded=excluded,
        settings=choice,
        seed=draw,
        query_block=query_block,
        check=second,
    )
    found, above = listed(result), result.above
    every = queries @ passages.T
    models = [every, *([second[0] @ second[1].T] if second else [])]
    for number, chosen in enumerate(found):
        low_enough = np.ones(len(passages), dtype=bool)
        for scores in models:
            lowest = scores[number, positives[number]].min()
            share = np.float32(float(lowest) * choice.hard_neg_margin) if lowest > 0 else lowest
            low_enough &= scores[number] <= min(share, np.float32(lowest - choice.hard_neg_absolute_margin))
        free = [row for row in range(len(passages)) if row not in excluded[number]]
        assert above[number] == sum(not low_enough[row] for row in free)
        ranked = sorted((float(every[number, row]) for row in free if low_enough[row]), reverse=True)
        eligible = ranked[choice.hard_neg_range_min : choice.hard_neg_range_max]
        mined = [score for _, score, origin in chosen if origin == "mined"]
        filled = [score for _, score, origin in chosen if origin == "filled"]
        if choice.hard_neg_sampling == "top":
            assert mined == eligible[: choice.hard_negatives_to_mine]
        else:
            assert len(mined) == min(choice.hard_negatives_to_mine, len(eligible))
            assert mined == sorted(mined, reverse=True)
            assert not [score for score in mined if mined.count(score) > eligible.count(score)]
        assert filled == ranked[: choice.hard_neg_range_min][::-1][: choice.hard_negatives_to_mine - len(mined)]
        rows = [row for row, _, _ in chosen]
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(free)
        assert [float(every[number, row]) for row in rows] == mined + filled
        assert np.isfinite(mined + filled).all()


def test_sampling_draws_every_eligible_rank_alike_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    queries = np.ones((3000, 1), dtype=np.float32)
    passages = rng.permutation(np.linspace(1, 0, 30, dtype=np.float32))[:, None]
    top = int(passages.argmax())
    same = {"positives": [[top]] * 3000, "excluded": [[top]] * 3000}
    choice = negatives(2, range_min=3, range_max=9, sampling="random")
    found = listed(find_hard_negatives(queries, passages, settings=choice, seed=7, **same))
    assert found == listed(find_hard_negatives(queries, passages, settings=choice, seed=7, **same))
    assert found != listed(find_hard_negatives(queries, passages, settings=choice, seed=8, **same))
    rank = {row: place for place, row in enumerate(np.argsort(-passages[:, 0])[1:].tolist())}
    drawn = [rank[row] for one in found for row, _, _ in one]
    counts = np.bincount(drawn, minlength=30)
    assert set(np.flatnonzero(counts)) == set(range(3, 9))
    # 6000 draws over six ranks: five standard deviations are 144.
    assert counts[3:9] == pytest.approx(1000, abs=150)


def test_tensors_in_bfloat16_score_as_their_float32_products() -> None:
    rng = np.random.default_rng(3)
    queries, passages = (torch.from_numpy(rng.normal(size=(n, 16)).astype(np.float32)).bfloat16() for n in (20, 700))
    same = {"positives": [[n] for n in range(20)], "excluded": [[n] for n in range(20)]}
    found = find_hard_negatives(queries, passages, settings=negatives(4), **same)
    expected = find_hard_negatives(queries.float().numpy(), passages.float().numpy(), settings=negatives(4), **same)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.above, expected.above)
