"""From search results to figures, by BEIR's own protocol and code (https://github.com/beir-cellar/beir)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from beir.retrieval.evaluation import EvaluateRetrieval

from components.core.errors import InputError
from components.core.retrieval.beir_data import BeirData

# Family of metrics -> what stands before the cut-off in a metric's name.
FAMILIES = {"NDCG": "NDCG", "MAP": "MAP", "Recall": "Recall", "Precision": "P", "MRR": "MRR"}

# Query -> passage or document -> score, best first.
Run = dict[str, dict[str, float]]

logging.getLogger("beir").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Scores:
    """``mean``: family -> metric -> mean over the queries. ``per_query``: query -> metric -> value."""

    mean: dict[str, dict[str, float]]
    per_query: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """One test set: what each system (bm25, base, champion, finetuned, nim) found there, and how good that is.

    ``shortened``: the same of vectors cut to a dimension, by dimension and system.
    """

    data: BeirData
    runs: dict[str, Run]
    scores: dict[str, Scores]
    shortened: dict[int, dict[str, Scores]] = field(default_factory=dict)


def measure(qrels: dict[str, dict[str, int]], run: Run, k_values: Sequence[int]) -> Scores:
    """The metrics of all families at ``k_values``, rounded to 5 digits as BEIR does.

    ``run`` has an entry for every query of ``qrels``, an empty one where nothing was found.
    """
    cutoffs = list(k_values)
    mean = _families(qrels, run, cutoffs)
    mean["MRR"] = EvaluateRetrieval.evaluate_custom(qrels, run, cutoffs, metric="mrr")
    per_query = {}
    for query, judged in qrels.items():
        families = _families({query: judged}, {query: run[query]}, cutoffs)
        rank = first_relevant_rank(judged, run[query])
        reciprocal = {f"MRR@{k}": round(1 / rank, 5) if rank and rank <= k else 0.0 for k in cutoffs}
        per_query[query] = {name: value for family in families.values() for name, value in family.items()} | reciprocal
    return Scores(mean, per_query)


def _families(qrels: dict[str, dict[str, int]], run: Run, cutoffs: list[int]) -> dict[str, dict[str, float]]:
    figures = EvaluateRetrieval.evaluate(qrels, run, cutoffs, ignore_identical_ids=False)
    return dict(zip(("NDCG", "MAP", "Recall", "Precision"), figures, strict=True))


def metric_name(family: str, k: int) -> str:
    """``metric_name("precision", 10) == "P@10"``; the family's case does not matter."""
    prefixes = {name.lower(): prefix for name, prefix in FAMILIES.items()}
    return f"{prefixes[family.lower()]}@{k}"


def first_relevant_rank(judged: dict[str, int], found: dict[str, float]) -> int | None:
    """Rank, from 1, of the first relevant entry of ``found``; None when there is none."""
    return next((rank for rank, name in enumerate(found, start=1) if judged.get(name, 0) > 0), None)


def to_run(scores: np.ndarray, positions: np.ndarray, data: BeirData, k: int) -> Run:
    """The ``k`` best passages or documents of each query.

    ``scores`` float [queries, depth] and ``positions`` int [queries, depth] in ``data.corpus``, best first; a score
    of -inf is no result. A document scores as its best passage (MaxP; Dai & Callan 2019, arXiv:1905.09217). As in
    BEIR, what has the query's own id is the query itself and not a result.
    """
    units = _units(data)
    run: Run = {}
    for query, row, places in zip(data.queries, scores.tolist(), positions.tolist(), strict=True):
        found = run[query] = {}
        for score, place in zip(row, places, strict=True):
            unit = units[place]
            if len(found) < k and unit not in found and unit != query and score > -np.inf:
                found[unit] = score
    return run


def search_depth(data: BeirData, k: int) -> int:
    """How many passages to search so that ``to_run`` surely finds ``k`` entries, the query itself left out."""
    largest = sorted(Counter(_units(data)).values(), reverse=True)
    return min(sum(largest[:k]) + 1, len(data.corpus))


def check_ids(data: BeirData, where: str) -> None:
    """Raise InputError when an answer has its query's id: BEIR's protocol would never find it."""
    for query, judged in data.qrels.items():
        if judged.get(query, 0) > 0:
            raise InputError(
                f"{where}: query {query!r} and its answer have the same _id, which BEIR takes for the same text and "
                f"leaves out: give the queries ids of their own"
            )


def _units(data: BeirData) -> list[str]:
    """What each passage counts as: itself, or its document."""
    return list(data.corpus) if data.level == "passage" else [data.documents[passage] for passage in data.corpus]
