"""Whether the exported model finds what the checkpoint finds, on the user's own test set."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.core.errors import InputError
from components.core.retrieval.beir_data import read_beir
from components.core.retrieval.ranking import ndcg_at
from components.core.serving.vector_limits import ParityLimits
from components.export.component import ExportConfig

_K = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchSample:
    """Queries with their judged passages, and passages to search in. ``documents`` is what each passage counts as."""

    queries: list[str]
    judged: list[dict[str, int]]
    passages: list[str]
    units: list[str]


@dataclass(frozen=True)
class RetrievalParity:
    """``overlap``: share of the checkpoint's ten nearest passages that the exported model finds, too."""

    queries: int
    overlap: float
    ndcg: float
    ndcg_checkpoint: float

    def figures(self) -> dict[str, float]:
        return {
            "queries": self.queries,
            "overlap_at_10": round(self.overlap, 4),
            "ndcg_at_10": round(self.ndcg, 5),
            "checkpoint_ndcg_at_10": round(self.ndcg_checkpoint, 5),
        }

    def require(self, limits: ParityLimits) -> None:
        """Raise InputError with the figures unless they are within ``limits``."""
        figures = ", ".join(f"{name} {value:g}" for name, value in self.figures().items())
        _log.info("search with the exported model: %s", figures)
        loss = limits.compute_allowed_loss(self.queries)
        if not (self.overlap >= limits.overlap and self.ndcg >= self.ndcg_checkpoint - loss):
            raise InputError(
                f"the exported model does not find the checkpoint's passages: {figures}; needed are overlap_at_10 >= "
                f"{limits.overlap:g} and a loss of nDCG@10 <= {loss:g}: export in a higher precision"
            )


def sample_search(config: ExportConfig, eval_data: Path | None) -> SearchSample | None:
    """``parity_queries`` of the test set with ``parity_passages``, those that answer them first; None without one."""
    if eval_data is None or not config.parity_queries:
        return None
    data = read_beir(eval_data)
    rng = random.Random(config.seed)
    queries = rng.sample(list(data.queries), min(config.parity_queries, len(data.queries)))
    unit = {passage: passage if data.level == "passage" else data.documents[passage] for passage in data.corpus}
    wanted = {name for query in queries for name, score in data.qrels[query].items() if score > 0}
    answers = [passage for passage in data.corpus if unit[passage] in wanted][: config.parity_passages]
    taken = set(answers)
    others = [passage for passage in data.corpus if passage not in taken]
    fill = rng.sample(others, min(len(others), config.parity_passages - len(answers)))
    passages = [*answers, *fill]
    return SearchSample(
        [data.queries[query] for query in queries],
        [data.qrels[query] for query in queries],
        [data.corpus[passage] for passage in passages],
        [unit[passage] for passage in passages],
    )


def measure_retrieval(
    sample: SearchSample, expected: tuple[np.ndarray, np.ndarray], exported: tuple[np.ndarray, np.ndarray]
) -> RetrievalParity:
    """``expected``, ``found``: vectors of queries and of passages, float32 [texts, dimension]."""
    right, here = (_nearest(*vectors) for vectors in (expected, exported))
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(right.tolist(), here.tolist(), strict=True)]
    return RetrievalParity(
        len(sample.queries), float(np.mean(shares)), _mean_ndcg(sample, here), _mean_ndcg(sample, right)
    )


def _nearest(queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :_K]


def _mean_ndcg(sample: SearchSample, nearest: np.ndarray) -> float:
    """A document counts once, where its best passage stands."""
    scores = []
    for places, judged in zip(nearest.tolist(), sample.judged, strict=True):
        ranked = list(dict.fromkeys(sample.units[place] for place in places))
        scores.append(ndcg_at(_K, ranked, judged))
    return float(np.mean(scores))
