"""Metrics of search results, by BEIR's own protocol and code (https://github.com/beir-cellar/beir)."""

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

# Query -> passage or document -> score, best first: a "run" in TREC's words.
Rankings = dict[str, dict[str, float]]

logging.getLogger("beir").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Scores:
    """``mean``: family -> metric -> mean over the queries. ``per_query``: query -> metric -> value."""

    mean: dict[str, dict[str, float]]
    per_query: dict[str, dict[str, float]]

    def get_mean(self, metric: str) -> float:
        """Return the mean of ``metric`` ("NDCG@10") over the queries."""
        return next(values[metric] for values in self.mean.values() if metric in values)


@dataclass(frozen=True)
class Evaluation:
    """One test set: rankings and scores of each system (bm25, base, champion, finetuned, nim).

    ``shortened``: scores of vectors cut to a dimension, by dimension and system.
    """

    data: BeirData
    rankings: dict[str, Rankings]
    scores: dict[str, Scores]
    shortened: dict[int, dict[str, Scores]] = field(default_factory=dict)


def measure(qrels: dict[str, dict[str, int]], rankings: Rankings, k_values: Sequence[int]) -> Scores:
    """Compute the metrics of all families at ``k_values``, rounded to 5 digits as BEIR does.

    ``rankings`` has an entry for every query of ``qrels``, an empty one where nothing was found.
    """
    cutoffs = list(k_values)
    mean = _evaluate_families(qrels, rankings, cutoffs)
    mean["MRR"] = EvaluateRetrieval.evaluate_custom(qrels, rankings, cutoffs, metric="mrr")
    per_query = {}
    for query, judged in qrels.items():
        families = _evaluate_families({query: judged}, {query: rankings[query]}, cutoffs)
        rank = find_first_relevant_rank(judged, rankings[query])
        reciprocal = {f"MRR@{k}": round(1 / rank, 5) if rank and rank <= k else 0.0 for k in cutoffs}
        per_query[query] = {name: value for family in families.values() for name, value in family.items()} | reciprocal
    return Scores(mean, per_query)


def _evaluate_families(
    qrels: dict[str, dict[str, int]], rankings: Rankings, cutoffs: list[int]
) -> dict[str, dict[str, float]]:
    figures = EvaluateRetrieval.evaluate(qrels, rankings, cutoffs, ignore_identical_ids=False)
    return dict(zip(("NDCG", "MAP", "Recall", "Precision"), figures, strict=True))


def metric_name(family: str, k: int) -> str:
    """Return BEIR's name of a metric: "P@10" for "precision" and 10. The case of ``family`` does not matter."""
    prefixes = {name.lower(): prefix for name, prefix in FAMILIES.items()}
    return f"{prefixes[family.lower()]}@{k}"


def find_first_relevant_rank(judged: dict[str, int], ranking: dict[str, float]) -> int | None:
    """Return the rank, from 1, of the first relevant entry of ``ranking``; None when there is none."""
    return next((rank for rank, name in enumerate(ranking, start=1) if judged.get(name, 0) > 0), None)


def to_rankings(scores: np.ndarray, positions: np.ndarray, data: BeirData, k: int) -> Rankings:
    """Return the ``k`` best passages or documents of each query.

    A document scores as its best passage (MaxP; Dai & Callan 2019, arXiv:1905.09217). As in BEIR, a passage with the
    query's own id is the query itself and not a result.

    Args:
        scores: float [queries, depth], best first; a score of -inf is no result.
        positions: Positions in ``data.corpus``, int [queries, depth].
        data: The test set that was searched.
        k: Length of a ranking.
    """
    units = _list_units(data)
    rankings: Rankings = {}
    for query, row, places in zip(data.queries, scores.tolist(), positions.tolist(), strict=True):
        ranking = rankings[query] = {}
        for score, place in zip(row, places, strict=True):
            unit = units[place]
            if len(ranking) < k and unit not in ranking and unit != query and score > -np.inf:
                ranking[unit] = score
    return rankings


def compute_search_depth(data: BeirData, k: int) -> int:
    """Return how many passages ``to_rankings`` needs to find ``k`` entries, the query itself left out."""
    largest = sorted(Counter(_list_units(data)).values(), reverse=True)
    return min(sum(largest[:k]) + 1, len(data.corpus))


def check_ids(data: BeirData, where: str) -> None:
    """Raise InputError when an answer has its query's id: BEIR's protocol would never find it."""
    for query, judged in data.qrels.items():
        if judged.get(query, 0) > 0:
            raise InputError(
                f"{where}: query {query!r} and its answer have the same _id, which BEIR takes for the same text and "
                f"leaves out: give the queries ids of their own"
            )


def _list_units(data: BeirData) -> list[str]:
    """Return the unit that each passage counts as: itself, or its document."""
    return list(data.corpus) if data.level == "passage" else [data.documents[passage] for passage in data.corpus]
