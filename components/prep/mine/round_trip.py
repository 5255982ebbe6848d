"""Leaves out generated questions that do not lead back to the passage that they were made from.

Round-trip consistency: Alberti et al. 2019, arXiv 1906.05416, for questions and answers; for retrieval Dai et al. 2022
("Promptagator"), arXiv 2209.11755.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from components.core.errors import InputError
from components.core.retrieval.search import top_k
from components.prep.mine.mining import Embed
from components.prep.split.split import Split

REASON = "generated, and does not find its own passage (round_trip_top_k)"


def round_trip(embed: Embed, parts: Split, most: int) -> tuple[Split, Embed]:
    """Keep a generated training question when fewer than ``most`` passages score higher than its best answer.

    Near-duplicates of answers do not count against it, and labelled questions stay. Only training questions are asked,
    among the training passages: a test set filtered by the base model would flatter it. The function that comes back
    gives the vectors of what is left without computing them again. Raises InputError when nothing is left.
    """
    vectors, queries = embed(parts.training_passages, [example.query for example in parts.train])
    generated = np.array([example.generated for example in parts.train])
    kept = ~generated | (_best_answers(queries, vectors, parts) >= _best_others(queries, vectors, parts, most))
    if not kept.any():
        raise InputError(
            f"no training question finds its own passage among the best {most}: raise round_trip_top_k, or look at "
            f"the questions"
        )
    left = replace(parts, train=[example for example, stays in zip(parts.train, kept, strict=True) if stays])
    if missing := int((~kept).sum()):
        left.dropped[REASON] += missing
    queries = queries[kept]

    def embedded(_passages: Sequence[str], _queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return vectors, queries

    return left, embedded


def _best_answers(queries: np.ndarray, vectors: np.ndarray, parts: Split) -> np.ndarray:
    """The score of each training question's best answer: float32 [queries]."""
    row = {text: number for number, text in enumerate(parts.training_passages)}
    found = [
        (vectors[[row[text] for text in example.positives]] @ query).max()
        for example, query in zip(parts.train, queries, strict=True)
    ]
    return np.array(found, dtype=np.float32)


def _best_others(queries: np.ndarray, vectors: np.ndarray, parts: Split, rank: int) -> np.ndarray:
    """The score at ``rank`` (from 1) of the passages that are no answer: float32 [queries], -inf where none is."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, text in enumerate(parts.training_passages):
        rows[parts.passage_clusters[text]].append(number)
    answers = [
        [number for cluster in {parts.passage_clusters[text] for text in example.positives} for number in rows[cluster]]
        for example in parts.train
    ]

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        for line, own in enumerate(answers[first_query : first_query + scores.shape[0]]):
            places = [place - first_passage for place in own if 0 <= place - first_passage < scores.shape[1]]
            scores[line, places] = -torch.inf

    scores = top_k(queries, vectors, rank, exclude=exclude, label="asking for the way back")[0]
    return scores[:, rank - 1] if scores.shape[1] >= rank else np.full(len(queries), -np.inf, dtype=np.float32)
