"""Hard negatives: passages that a model takes for an answer and that are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from components.core.errors import InputError
from components.prep.mine.hard_negatives import Choice, Pairs, hard_negatives
from components.prep.read.records import Example
from components.prep.split.split import Split

# Where a negative comes from: the user, the rank range, or the ranks passed over because the range was too short.
Origin = Literal["given", "mined", "filled"]
# (passages, queries) -> their vectors by one model: float32, [passages, dimension] and [queries, dimension]
Embed = Callable[[Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Negative:
    """A passage that answers the question not, and its score, which is finite."""

    text: str
    score: float
    origin: Origin


@dataclass(frozen=True)
class Mined:
    """For one example: the score of each positive, and the negatives, best first within each origin.

    ``above`` counts the passages that the margins left out: scoring like answers, they may be some.
    """

    positive_scores: tuple[float, ...]
    negatives: tuple[Negative, ...]
    above: int = 0


def mine(
    embed: Embed, parts: Split, choice: Choice, *, query_block: int | None = None, check: Embed | None = None
) -> list[Mined]:
    """Up to ``choice.count`` hard negatives of each training example, among the training passages.

    Scores are dot products of ``embed``'s vectors. Answers to the same question, near-duplicates of them and
    near-duplicates of given negatives are never mined; given negatives come first, in their order, unless they are
    an answer's near-duplicate. What ``check``, a second model, scores above the margins is no negative either. Raises
    InputError for vectors that hold NaN or infinity.
    """
    passages, asked = parts.training_passages, [example.query for example in parts.train]
    row = {text: number for number, text in enumerate(passages)}
    answers = _answer_clusters(parts)
    given = [_given(example, answers[parts.query_clusters[example.query]], parts) for example in parts.train]
    positives = [[row[text] for text in example.positives] for example in parts.train]
    vectors, queries = _finite(*embed(passages, asked))
    second = _finite(*check(passages, asked)) if check else None
    found = hard_negatives(
        queries,
        vectors,
        positives=positives,
        excluded=_excluded(parts, answers, given),
        choice=choice,
        query_block=query_block,
        check=(second[1], second[0]) if second else None,
    )
    scores = _by_query(positives, queries, vectors)
    own = _by_query([[row[text] for text in texts] for texts in given], queries, vectors)
    mined = []
    for number, texts in enumerate(given):
        negatives = [Negative(text, score, "given") for text, score in zip(texts, own[number], strict=True)]
        end, last = int(found.mined[number]), int(found.found[number])
        for rank in range(last):
            place, score = int(found.rows[number, rank]), float(found.scores[number, rank])
            negatives.append(Negative(passages[place], score, "mined" if rank < end else "filled"))
        mined.append(Mined(scores[number], tuple(negatives[: choice.count]), int(found.above[number])))
    return mined


def _by_query(rows: Sequence[Sequence[int]], queries: np.ndarray, vectors: np.ndarray) -> list[tuple[float, ...]]:
    """The scores of each query's ``rows``."""
    scores = iter(Pairs(rows).scores(queries, vectors).tolist())
    return [tuple(next(scores) for _ in own) for own in rows]


def _answer_clusters(parts: Split) -> Mapping[int, set[int]]:
    """The clusters of all answers to a question, by the cluster of the question."""
    answers: dict[int, set[int]] = defaultdict(set)
    for example in parts.train:
        answers[parts.query_clusters[example.query]].update(parts.passage_clusters[text] for text in example.positives)
    return answers


def _given(example: Example, answers: set[int], parts: Split) -> list[str]:
    return [text for text in example.negatives if parts.passage_clusters[text] not in answers]


def _excluded(parts: Split, answers: Mapping[int, set[int]], given: Sequence[Sequence[str]]) -> list[list[int]]:
    """For each training example the rows of training passages that may not be mined."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(parts.training_passages):
        rows[parts.passage_clusters[text]].append(number)
    excluded = []
    for example, own in zip(parts.train, given, strict=True):
        clusters = answers[parts.query_clusters[example.query]] | {parts.passage_clusters[text] for text in own}
        excluded.append(sorted(number for cluster in clusters for number in rows[cluster]))
    return excluded


def _finite(*found: np.ndarray) -> tuple[np.ndarray, ...]:
    for vectors in found:
        # A sum is finite when all its terms are.
        broken = int((~np.isfinite(vectors.sum(axis=1))).sum())
        if broken:
            raise InputError(
                f"{broken} of {len(vectors)} vectors of the mining model hold NaN or infinity: the model is broken; "
                f"give another base_model or miner"
            )
    return found
