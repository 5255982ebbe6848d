"""Hard negatives of training examples: passages that a model takes for an answer although they are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from components.core.errors import InputError
from components.prep.component import MiningSettings
from components.prep.mine.hard_negatives import HardNegatives, QueryPassagePairs, find_hard_negatives
from components.prep.read.records import QueryExample
from components.prep.split.data_split import DataSplit

# Where a negative comes from: the user, the rank range, or the ranks passed over because the range was too short.
Origin = Literal["given", "mined", "filled"]
# (passages, queries) -> their vectors by one model: float32, [passages, dimension] and [queries, dimension]
EncodePair = Callable[[Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Negative:
    """A passage that does not answer the question, with its (finite) score."""

    text: str
    score: float
    origin: Origin


@dataclass(frozen=True)
class MinedExample:
    """What mining found for one example: the score of each positive, and negatives, best first within each origin.

    ``above`` counts the passages that the margins left out: scoring like answers, they may be answers.
    """

    positive_scores: tuple[float, ...]
    negatives: tuple[Negative, ...]
    above: int = 0


def mine(
    encode: EncodePair, data: DataSplit, settings: MiningSettings, *, check: EncodePair | None = None
) -> list[MinedExample]:
    """Mine up to ``hard_negatives_to_mine`` negatives of each training example among the training passages.

    Scores are dot products of ``encode``'s vectors. Answers to the same question, near-duplicates of them and
    near-duplicates of given negatives are never mined; given negatives come first, in their order, unless they are
    an answer's near-duplicate. What ``check``, a second model, scores above the margins is no negative either. Raises
    InputError for vectors that hold NaN or infinity.
    """
    passages, asked = data.training_passages, [example.query for example in data.train]
    row = {text: number for number, text in enumerate(passages)}
    answers = _collect_answer_clusters(data)
    given = [_select_given(example, answers[data.query_clusters[example.query]], data) for example in data.train]
    positives = [[row[text] for text in example.positives] for example in data.train]
    vectors, queries = _check_finite(*encode(passages, asked))
    checker_vectors = _check_finite(*check(passages, asked)) if check else None
    negatives = find_hard_negatives(
        queries,
        vectors,
        positives=positives,
        excluded=_list_excluded_rows(data, answers, given),
        settings=settings,
        seed=settings.conversion_seed,
        query_block=settings.mining_batch_size,
        check=(checker_vectors[1], checker_vectors[0]) if checker_vectors else None,
    )
    positive_scores = _score_rows(positives, queries, vectors)
    given_scores = _score_rows([[row[text] for text in texts] for texts in given], queries, vectors)
    mined = []
    for number, texts in enumerate(given):
        chosen = [Negative(text, score, "given") for text, score in zip(texts, given_scores[number], strict=True)]
        chosen += _to_negatives(negatives, number, passages)
        kept = tuple(chosen[: settings.hard_negatives_to_mine])
        mined.append(MinedExample(positive_scores[number], kept, int(negatives.above[number])))
    return mined


def _to_negatives(negatives: HardNegatives, query: int, passages: Sequence[str]) -> list[Negative]:
    mined, total = int(negatives.mined[query]), int(negatives.total[query])
    rows, scores = negatives.rows[query, :total].tolist(), negatives.scores[query, :total].tolist()
    return [
        Negative(passages[row], score, "mined" if rank < mined else "filled")
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]


def _score_rows(rows: Sequence[Sequence[int]], queries: np.ndarray, vectors: np.ndarray) -> list[tuple[float, ...]]:
    """Return the scores of each query's ``rows`` of ``vectors``."""
    scores = iter(QueryPassagePairs(rows).compute_scores(queries, vectors).tolist())
    return [tuple(next(scores) for _ in query_rows) for query_rows in rows]


def _collect_answer_clusters(data: DataSplit) -> Mapping[int, set[int]]:
    """Return the clusters of all answers to a question, by the cluster of the question."""
    answers: dict[int, set[int]] = defaultdict(set)
    for example in data.train:
        answers[data.query_clusters[example.query]].update(data.passage_clusters[text] for text in example.positives)
    return answers


def _select_given(example: QueryExample, answers: set[int], data: DataSplit) -> list[str]:
    return [text for text in example.negatives if data.passage_clusters[text] not in answers]


def _list_excluded_rows(
    data: DataSplit, answers: Mapping[int, set[int]], given: Sequence[Sequence[str]]
) -> list[list[int]]:
    """Return for each training example the rows of training passages that may not be mined."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(data.training_passages):
        rows[data.passage_clusters[text]].append(number)
    excluded = []
    for example, texts in zip(data.train, given, strict=True):
        clusters = answers[data.query_clusters[example.query]] | {data.passage_clusters[text] for text in texts}
        excluded.append(sorted(number for cluster in clusters for number in rows[cluster]))
    return excluded


def _check_finite(*matrices: np.ndarray) -> tuple[np.ndarray, ...]:
    for vectors in matrices:
        # A sum is finite when all its terms are.
        broken = int((~np.isfinite(vectors.sum(axis=1))).sum())
        if broken:
            raise InputError(
                f"{broken} of {len(vectors)} vectors of the mining model hold NaN or infinity: the model is broken; "
                f"give another base_model or miner"
            )
    return matrices
