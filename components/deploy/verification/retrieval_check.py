"""The test set searched through an endpoint: does it find what the checkpoint found when it was evaluated?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.core.errors import InputError
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.ranking import ndcg_at
from components.deploy.verification.checks import Check, ProbedEndpoint

_K = 10


@dataclass(frozen=True)
class TestSet:
    """Questions with known answers, and the nDCG@10 that eval measured with the checkpoint on them."""

    __test__ = False  # pytest takes it for a test otherwise.

    data: BeirData
    ndcg: float


def read_test_set(eval_data: Path, eval_results: Path, *, max_passages: int) -> TestSet | None:
    """None when it is too large to be embedded again, or judges documents. Raises InputError for broken files."""
    data = read_beir(eval_data)
    if len(data.corpus) > max_passages or data.level != "passage":
        return None
    path = eval_results / "eval_results.json" if eval_results.is_dir() else eval_results
    try:
        ndcg = float(json.loads(path.read_text(encoding="utf-8"))["finetuned"]["NDCG"][f"NDCG@{_K}"])
    except KeyError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give the eval_results that eval made") from None
    return TestSet(data, ndcg)


def retrieval(served: ProbedEndpoint, test: TestSet) -> Check:
    """nDCG@10 through the endpoint beside the checkpoint's. Raises StageError for an endpoint that does not answer."""
    endpoint, data = served.endpoint, test.data
    passages = endpoint.embed(list(data.corpus.values()), "passage", dimension=served.bundle.manifest.dimension)
    queries = endpoint.embed(list(data.queries.values()), "query", dimension=served.bundle.manifest.dimension)
    ids = list(data.corpus)
    scores = [
        ndcg_at(_K, [ids[place] for place in _best(passages @ vector)], data.qrels[query])
        for query, vector in zip(data.queries, queries, strict=True)
    ]
    found = float(np.mean(scores))
    loss = served.limits.compute_allowed_loss(len(scores))
    figures = {"nDCG@10": round(found, 5), "checkpoint": round(test.ndcg, 5), "queries": len(scores)}
    return Check("test set", found >= test.ndcg - loss, figures, f">= checkpoint's - {loss:g}")


def _best(scores: np.ndarray) -> np.ndarray:
    k = min(_K, len(scores))
    found = np.argpartition(-scores, k - 1)[:k]
    return found[np.argsort(-scores[found], kind="stable")]
