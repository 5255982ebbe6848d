"""Leaves out generated questions that do not lead back to the passage that they were made from.

Round-trip consistency: Alberti et al. 2019, arXiv 1906.05416, for questions and answers; for retrieval Dai et al. 2022
("Promptagator"), arXiv 2209.11755.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, inf

from components.core.errors import InputError
from components.core.retrieval.search import top_k
from components.prep.mine.mining import EncodePair
from components.prep.split.data_split import DataSplit

REASON = "generated, and does not find its own passage (round_trip_top_k)"


def filter_round_trip(encode: EncodePair, data: DataSplit, top: int) -> tuple[DataSplit, EncodePair]:
    """Keep a generated training question when fewer than ``top`` passages score higher than its best answer.

    Near-duplicates of answers do not count against it, and labelled questions stay. Only training questions are asked,
    among the training passages: a test set filtered by the base model would flatter it.

    Returns:
        The data without the other questions, and a function that gives the vectors of the rest without computing them
        again.

    Raises:
        InputError: No question is left.
    """
    vectors, queries = encode(data.training_passages, [example.query for example in data.train])
    generated = np.array([example.generated for example in data.train])
    kept = ~generated | (_score_best_answers(queries, vectors, data) >= _score_rank(queries, vectors, data, top))
    if not kept.any():
        raise InputError(
            f"no training question finds its own passage among the best {top}: raise round_trip_top_k, or look at "
            f"the questions"
        )
    filtered = replace(data, train=[example for example, stays in zip(data.train, kept, strict=True) if stays])
    if dropped := int((~kept).sum()):
        filtered.dropped[REASON] += dropped
    queries = queries[kept]

    def reuse_vectors(_passages: Sequence[str], _queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return vectors, queries

    return filtered, reuse_vectors


def _score_best_answers(queries: np.ndarray, vectors: np.ndarray, data: DataSplit) -> np.ndarray:
    """Return the score of each training question's best answer: float32 [queries]."""
    row = {text: number for number, text in enumerate(data.training_passages)}
    best = [
        (vectors[[row[text] for text in example.positives]] @ query).max()
        for example, query in zip(data.train, queries, strict=True)
    ]
    return np.array(best, dtype=np.float32)


def _score_rank(queries: np.ndarray, vectors: np.ndarray, data: DataSplit, rank: int) -> np.ndarray:
    """Return the score at ``rank`` (from 1) of the passages that are no answer: float32 [queries], -inf if none is."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(data.training_passages):
        rows[data.passage_clusters[text]].append(number)
    answers = [
        [number for cluster in {data.passage_clusters[text] for text in example.positives} for number in rows[cluster]]
        for example in data.train
    ]

    def exclude(scores: Tensor, first_query: int, first_passage: int) -> None:
        for line, answer_rows in enumerate(answers[first_query : first_query + scores.shape[0]]):
            columns = [row - first_passage for row in answer_rows if 0 <= row - first_passage < scores.shape[1]]
            scores[line, columns] = -inf

    scores = top_k(queries, vectors, rank, exclude=exclude, label="asking for the way back").scores
    return scores[:, rank - 1] if scores.shape[1] >= rank else np.full(len(queries), -np.inf, dtype=np.float32)
