"""Hard negatives: passages that a model takes for an answer and that are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.search import Vectors, as_tensor, dot, top_k
from components.prep.records import Example
from components.prep.split import Split

# Where a negative comes from: the user, the rank range, or the ranks passed over because the range was too short.
Origin = Literal["given", "mined", "filled"]


@dataclass(frozen=True)
class Choice:
    """Which candidates become negatives; the settings of the same names in PrepConfig."""

    count: int
    margin: float = 1.0
    absolute_margin: float = 0.0
    range_min: int = 0
    range_max: int | None = None
    sampling: Literal["top", "random"] = "top"
    seed: int = 0


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
    encoder: Encoder,
    parts: Split,
    choice: Choice,
    *,
    query_block: int,
    batch_tokens: int,
    checker: Encoder | None = None,
) -> list[Mined]:
    """Up to ``choice.count`` hard negatives of each training example, among the training passages.

    Vectors are the encoder's, scores dot products. Answers to the same question, near-duplicates of them and
    near-duplicates of given negatives are never mined; given negatives come first, in their order, unless they are
    an answer's near-duplicate. What ``checker`` scores above the margins is no negative either. Raises InputError for
    an encoder whose vectors hold NaN or infinity.
    """
    passages = parts.training_passages
    queries, vectors = _encoded(encoder, parts, batch_tokens)
    row = {text: number for number, text in enumerate(passages)}
    answers = _answer_clusters(parts)
    given = [_given(example, answers[parts.query_clusters[example.query]], parts) for example in parts.train]
    found, above = hard_negatives(
        queries,
        vectors,
        positives=[[row[text] for text in example.positives] for example in parts.train],
        excluded=_excluded(parts, answers, given),
        choice=choice,
        query_block=query_block,
        check=_encoded(checker, parts, batch_tokens) if checker else None,
    )
    mined = []
    for query, example, own, candidates, over in zip(queries, parts.train, given, found, above, strict=True):
        scored = [Negative(text, float(query @ vectors[row[text]]), "given") for text in own]
        scored += [Negative(passages[place], score, origin) for place, score, origin in candidates]
        positives = tuple(float(query @ vectors[row[text]]) for text in example.positives)
        mined.append(Mined(positives, tuple(scored[: choice.count]), over))
    return mined


def hard_negatives(
    queries: Vectors,
    passages: Vectors,
    *,
    positives: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]],
    choice: Choice,
    query_block: int = 1024,
    check: tuple[Vectors, Vectors] | None = None,
) -> tuple[list[list[tuple[int, float, Origin]]], list[int]]:
    """Row, score and origin of each query's negatives among ``passages``, and how many the margins left out.

    There may be fewer negatives than asked for.

    A passage may be one when it is not excluded and scores at most ``margin`` times the lowest score of the query's
    positives ("TopK-PercPos": NV-Retriever, arXiv 2407.15831), or that score itself where it is not positive and a
    share of it is no bound, and at least ``absolute_margin`` less than it. Of these candidates, best first, those
    from rank ``range_min`` (counted from 0) to ``range_max`` are eligible. Where they are too few, the ranks that were
    passed over fill up, nearest first. ``check`` are the vectors of the same queries and passages by a second model,
    by which the margins must hold as well.
    """
    ceiling = torch.from_numpy(_ceilings(queries, passages, positives, choice))
    limit = torch.from_numpy(_ceilings(*check, positives, choice)) if check else None
    above = torch.zeros(len(ceiling), dtype=torch.int64)
    banned = _Banned(excluded)

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        nonlocal ceiling, above
        ceiling, above = ceiling.to(scores.device), above.to(scores.device)
        block = slice(first_query, first_query + scores.shape[0])
        numbers, rows = banned.within(first_query, first_passage, scores.shape)
        if len(numbers):
            scores[torch.from_numpy(numbers).to(scores.device), torch.from_numpy(rows).to(scores.device)] = -torch.inf
        over = scores > ceiling[block, None]
        if check is not None and limit is not None:
            columns = slice(first_passage, first_passage + scores.shape[1])
            second = [as_tensor(v)[rows].to(scores.device) for v, rows in zip(check, (block, columns), strict=True)]
            over |= (dot(*second) > limit[block, None].to(scores.device)) & scores.isfinite()
        # As bytes: a CPU counts truth values several times slower.
        above[block] += over.view(torch.uint8).sum(dim=1, dtype=torch.int32)
        scores.masked_fill_(over, -torch.inf)

    depth = choice.range_max or choice.range_min + choice.count
    scores, rows = top_k(
        queries, passages, depth, exclude=exclude, query_block=query_block, what="mining hard negatives"
    )
    counts = np.isfinite(scores).sum(axis=1).tolist()
    chosen = [
        _chosen(places[:count], values[:count], choice, number)
        for number, (places, values, count) in enumerate(zip(rows.tolist(), scores.tolist(), counts, strict=True))
    ]
    return chosen, above.tolist()


def _chosen(rows: list[int], scores: list[float], choice: Choice, number: int) -> list[tuple[int, float, Origin]]:
    """The negatives of query ``number`` among its candidates, best first."""
    first = min(choice.range_min, len(rows))
    last = min(first + choice.count, len(rows))
    ranks: Sequence[int] = range(first, last)
    if choice.sampling == "random":
        drawn = np.random.default_rng([choice.seed, number]).choice(len(rows) - first, last - first, replace=False)
        ranks = sorted((drawn + first).tolist())
    mined: list[tuple[int, float, Origin]] = [(rows[rank], scores[rank], "mined") for rank in ranks]
    passed_over = range(first - 1, -1, -1)[: choice.count - len(mined)]
    return mined + [(rows[rank], scores[rank], "filled") for rank in passed_over]


def _ceilings(queries: Vectors, passages: Vectors, positives: Sequence[Sequence[int]], choice: Choice) -> np.ndarray:
    """The highest score that a negative of each query may have: float32 [queries]."""
    owner = np.repeat(np.arange(len(positives)), [len(rows) for rows in positives])
    rows = np.concatenate([np.asarray(own, dtype=np.int64) for own in positives])
    lowest = np.full(len(positives), np.inf, dtype=np.float32)
    for start in range(0, len(rows), 65_536):
        part = slice(start, start + 65_536)
        np.minimum.at(lowest, owner[part], _pair_scores(queries, passages, owner[part], rows[part]))
    share = np.where(lowest > 0, lowest.astype(np.float64) * choice.margin, lowest)
    return np.minimum(share, lowest.astype(np.float64) - choice.absolute_margin).astype(np.float32)


def _pair_scores(queries: Vectors, passages: Vectors, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Dot product of each pair: float32."""
    if isinstance(passages, np.ndarray):
        return np.einsum("ij,ij->i", queries[numbers], passages[rows])
    chosen = [v[torch.from_numpy(at).to(v.device)].float() for v, at in ((queries, numbers), (passages, rows))]
    return (chosen[0] * chosen[1]).sum(dim=1).cpu().numpy()


class _Banned:
    """Pairs of query and passage that may not be found, so ordered that those of a block are found at once."""

    def __init__(self, excluded: Sequence[Sequence[int]]) -> None:
        numbers = np.repeat(np.arange(len(excluded)), [len(rows) for rows in excluded])
        rows = np.array([row for own in excluded for row in own], dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        self._numbers, self._rows = numbers[order], rows[order]

    def within(self, first_query: int, first_passage: int, shape: torch.Size) -> tuple[np.ndarray, np.ndarray]:
        """Query and passage of each pair inside the block, counted from its corner."""
        start, end = np.searchsorted(self._rows, [first_passage, first_passage + shape[1]])
        numbers, rows = self._numbers[start:end] - first_query, self._rows[start:end] - first_passage
        inside = (numbers >= 0) & (numbers < shape[0])
        return numbers[inside], rows[inside]


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


def _encoded(encoder: Encoder, parts: Split, batch_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the training questions and of the training passages."""
    passages = _finite(encoder.encode(parts.training_passages, "passage", batch_tokens=batch_tokens))
    return _finite(encoder.encode([e.query for e in parts.train], "query", batch_tokens=batch_tokens)), passages


def _finite(vectors: np.ndarray) -> np.ndarray:
    broken = int((~np.isfinite(vectors)).any(axis=1).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(vectors)} vectors of the mining model hold NaN or infinity: the model is broken; "
            f"give another base_model or miner"
        )
    return vectors
