"""Generated questions stay when their own passage is among the best, by vectors whose ranks are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from components.core.errors import InputError
from components.prep.mine.round_trip import REASON, filter_round_trip
from components.prep.read.records import QueryExample
from components.prep.split.data_split import DataSplit


def case(seed: int, *, generated: bool = True) -> tuple[DataSplit, dict[str, np.ndarray]]:
    """40 questions with one or two answers among 60 passages; passages 0 and 1 are near-duplicates."""
    random_ = np.random.default_rng(seed)
    passages = [f"passage {n}" for n in range(60)]
    vectors = {text: random_.normal(size=8).astype(np.float32) for text in passages}
    train = []
    for n in range(40):
        answers = tuple(passages[place] for place in random_.choice(60, size=1 + n % 2, replace=False))
        train.append(QueryExample(f"question {n}", answers, "document", generated=generated))
        vectors[f"question {n}"] = (vectors[answers[0]] + 2 * random_.normal(size=8)).astype(np.float32)
    clusters = {text: max(n, 1) for n, text in enumerate(passages)}
    return DataSplit(train, [], [], passages, clusters, {}), vectors


def by(vectors: dict[str, np.ndarray], calls: list[int]):
    def embed(passages: Sequence[str], queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(queries))
        return np.stack([vectors[text] for text in passages]), np.stack([vectors[text] for text in queries])

    return embed


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 3, 10])
def test_questions_stay_whose_rank_is_good_enough(seed: int, most: int) -> None:
    parts, vectors = case(seed)
    expected = []
    for example in parts.train:
        scores = {text: float(vectors[example.query] @ vectors[text]) for text in parts.training_passages}
        own = {parts.passage_clusters[text] for text in example.positives}
        best = max(scores[text] for text in example.positives)
        better = [t for t, score in scores.items() if score > best and parts.passage_clusters[t] not in own]
        if len(better) < most:
            expected.append(example.query)
    left, _ = filter_round_trip(by(vectors, []), parts, most)
    assert [example.query for example in left.train] == expected
    assert 0 < len(expected) < 40
    assert left.dropped == {REASON: 40 - len(expected)}


def test_nothing_is_encoded_twice() -> None:
    parts, vectors = case(1)
    calls: list[int] = []
    left, embed = filter_round_trip(by(vectors, calls), parts, 3)
    passages, queries = embed(left.training_passages, [example.query for example in left.train])
    assert calls == [40]
    np.testing.assert_array_equal(queries, np.stack([vectors[example.query] for example in left.train]))
    np.testing.assert_array_equal(passages, np.stack([vectors[text] for text in left.training_passages]))


def test_labelled_questions_stay() -> None:
    parts, vectors = case(2, generated=False)
    left, _ = filter_round_trip(by(vectors, []), parts, 1)
    assert left.train == parts.train
    assert not left.dropped


def test_nothing_left_is_said() -> None:
    parts, vectors = case(3)
    away = {text: -vector if text.startswith("question") else vector for text, vector in vectors.items()}
    only = replace(parts, train=[example for example in parts.train if len(example.positives) == 1][:3])
    with pytest.raises(InputError, match="raise round_trip_top_k"):
        filter_round_trip(by(away, []), only, 1)
