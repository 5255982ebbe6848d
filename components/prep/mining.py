"""Hard negatives: passages that the base model takes for an answer and that are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from components.core.encoder.model import Encoder
from components.core.search import top_k
from components.prep.records import Example


@dataclass(frozen=True)
class Mined:
    """For one example: the score of each positive, and the negatives with theirs, best first."""

    positive_scores: tuple[float, ...]
    negatives: tuple[tuple[str, float], ...]


def mine(
    encoder: Encoder,
    examples: Sequence[Example],
    passages: Sequence[str],
    *,
    count: int,
    margin: float,
    query_block: int,
    batch_tokens: int,
) -> list[Mined]:
    """Up to ``count`` hard negatives of each example among ``passages`` (which must hold all positives).

    Vectors are the encoder's, scores dot products. Negatives that a user gave come first, in their order.
    """
    vectors = encoder.encode(passages, "passage", batch_tokens=batch_tokens)
    queries = encoder.encode([e.query for e in examples], "query", batch_tokens=batch_tokens)
    row = {text: number for number, text in enumerate(passages)}
    answers: dict[str, set[int]] = {}
    for example in examples:
        answers.setdefault(example.query, set()).update(row[text] for text in example.positives)
    given = [[row[text] for text in example.negatives] for example in examples]
    positives = [[row[text] for text in example.positives] for example in examples]
    found = hard_negatives(
        queries,
        vectors,
        positives=positives,
        excluded=[sorted(answers[e.query] | set(g)) for e, g in zip(examples, given, strict=True)],
        count=count,
        margin=margin,
        query_block=query_block,
    )
    mined = []
    for number, (rows, scores) in enumerate(found):
        query = queries[number]
        own = [(passages[r], float(query @ vectors[r])) for r in given[number]]
        taken = [(passages[r], float(s)) for r, s in zip(rows, scores, strict=True)]
        mined.append(Mined(tuple(float(query @ vectors[r]) for r in positives[number]), tuple((own + taken)[:count])))
    return mined


def hard_negatives(
    queries: np.ndarray,
    passages: np.ndarray,
    *,
    positives: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]],
    count: int,
    margin: float,
    query_block: int = 1024,
) -> list[tuple[list[int], list[float]]]:
    """Rows and scores of each query's ``count`` best passages that are not excluded and score low enough.

    A passage above ``margin`` times the lowest score of the query's positives is taken for an unlabelled answer and
    left out (positive-aware mining, "TopK-PercPos": NV-Retriever, arXiv 2407.15831). Where that lowest score is not
    positive the share is no bound, and the score itself is. There may be fewer than ``count``; scores are finite.
    """
    ceilings = np.empty(len(queries), dtype=np.float32)
    for number, rows in enumerate(positives):
        lowest = float((passages[list(rows)] @ queries[number]).min())
        ceilings[number] = lowest * margin if lowest > 0 else lowest
    ceiling = torch.from_numpy(ceilings)

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        bound = ceiling[first_query : first_query + scores.shape[0], None].to(scores.device)
        scores.masked_fill_(scores > bound, -torch.inf)
        last = first_passage + scores.shape[1]
        at = [
            (number, row - first_passage)
            for number in range(scores.shape[0])
            for row in excluded[first_query + number]
            if first_passage <= row < last
        ]
        if at:
            index = torch.tensor(at, device=scores.device)
            scores[index[:, 0], index[:, 1]] = -torch.inf

    scores, rows = top_k(
        queries, passages, count, exclude=exclude, query_block=query_block, what="mining hard negatives"
    )
    finite = np.isfinite(scores)
    return [
        (rows[number][finite[number]].tolist(), scores[number][finite[number]].tolist())
        for number in range(len(queries))
    ]
