"""Search of the test set through an endpoint, which must find what the checkpoint found in its evaluation."""

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
    """Read the test set with the checkpoint's nDCG@10. Raises InputError for broken files.

    Returns None when the set is too large to be embedded again, judges documents, or was not evaluated.
    """
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


def check_retrieval(endpoint: ProbedEndpoint, test: TestSet) -> Check:
    """Compare nDCG@10 through the endpoint with the checkpoint's. Raises StageError when the endpoint fails."""
    client, data, dimension = endpoint.client, test.data, endpoint.bundle.manifest.dimension
    passages = client.embed(list(data.corpus.values()), "passage", dimension=dimension)
    queries = client.embed(list(data.queries.values()), "query", dimension=dimension)
    ids = list(data.corpus)
    scores = [
        ndcg_at(_K, [ids[position] for position in _rank_best(passages @ vector)], data.qrels[query])
        for query, vector in zip(data.queries, queries, strict=True)
    ]
    ndcg = float(np.mean(scores))
    loss = endpoint.limits.compute_allowed_loss(len(scores))
    figures = {"nDCG@10": round(ndcg, 5), "checkpoint": round(test.ndcg, 5), "queries": len(scores)}
    return Check("test set", ndcg >= test.ndcg - loss, figures, f">= checkpoint's - {loss:g}")


def _rank_best(scores: np.ndarray) -> list[int]:
    """Return the positions of the ten best of ``scores``, floats [passages], best first."""
    k = min(_K, len(scores))
    best = np.argpartition(-scores, k - 1)[:k]
    ranked: list[int] = best[np.argsort(-scores[best], kind="stable")].tolist()
    return ranked
