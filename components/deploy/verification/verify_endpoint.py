"""Verification of an endpoint: whether it serves the fine-tuned model, by the vectors that it gives."""

from __future__ import annotations

from dataclasses import dataclass

from components.core.errors import StageError
from components.core.serving.bundle import Bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.verification.checks import (
    BATCH,
    Check,
    ProbedEndpoint,
    check_cosines,
    check_long_texts,
    check_model_name,
    check_neighbours,
    check_norm,
    check_not_base,
    check_readiness,
    embed_probes,
    run_check,
)
from components.deploy.verification.load_checks import check_latency, check_requests
from components.deploy.verification.retrieval_check import TestSet, check_retrieval


@dataclass(frozen=True)
class Requirements:
    """Requirements of a service beside its vectors.

    ``previous_latency`` are figures of the release before, shown beside the new ones.
    """

    latency_budget_ms: float | None = None
    previous_latency: dict[str, float] | None = None
    test_set: TestSet | None = None


def verify_endpoint(
    client: EmbeddingClient, bundle: Bundle, requirements: Requirements | None = None, *, brief: bool = False
) -> list[Check]:
    """Check the endpoint of ``client`` against the reference vectors of ``bundle``; a check that cannot run has failed.

    ``brief`` asks for each probe once and leaves out what needs more.
    """
    checks = [
        run_check("ready", "answers 200", lambda: check_readiness(client)),
        run_check("model name", f"'{client.model}' is listed", lambda: check_model_name(client)),
    ]
    try:
        vectors = embed_probes(client, bundle.probes, BATCH)
    except StageError as error:
        return [*checks, Check("vectors", False, {"error": str(error)}, "one finite vector for each probe")]
    checks.append(Check("vectors", True, {"probes": len(vectors)}, "one finite vector for each probe"))
    expected = bundle.manifest.dimension
    checks.append(Check("dimension", vectors.shape[1] == expected, {"found": vectors.shape[1]}, f"{expected}"))
    if checks[-1].passed:
        endpoint = ProbedEndpoint(client, bundle, vectors)
        checks += [
            check_norm(endpoint),
            check_cosines(endpoint),
            check_long_texts(endpoint),
            check_neighbours(endpoint),
            check_not_base(endpoint),
        ]
        checks += [] if brief else _check_thoroughly(endpoint, requirements or Requirements())
    checks.append(Check("retries", client.retries == 0, {"retries": client.retries}, "0"))
    return checks


def _check_thoroughly(endpoint: ProbedEndpoint, requirements: Requirements) -> list[Check]:
    checks = check_requests(endpoint)
    if requirements.test_set:
        checks.append(_try_retrieval(endpoint, requirements.test_set))
    return [*checks, check_latency(endpoint, requirements.latency_budget_ms, requirements.previous_latency)]


def _try_retrieval(endpoint: ProbedEndpoint, test_set: TestSet) -> Check:
    try:
        return check_retrieval(endpoint, test_set)
    except StageError as error:
        return Check("test set", False, {"error": str(error)}, "answers")


def list_failures(checks: list[Check]) -> list[str]:
    """Return the checks that failed, one text each."""
    return [" ".join(str(check).split()) for check in checks if check.passed is False]


def extract_latency(checks: list[Check]) -> dict[str, float]:
    """Return the figures of the check ``latency``, without those of the release before."""
    figures = next((check.figures for check in checks if check.name == "latency"), {})
    return {
        name: value for name, value in figures.items() if name.endswith(("_ms", "_second")) and "previous" not in name
    }
