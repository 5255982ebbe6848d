"""Whether an endpoint serves the fine-tuned model, by the vectors it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from components.core.errors import StageError
from components.core.serving.bundle import Bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.verification.checks import (
    BATCH,
    Check,
    ProbedEndpoint,
    embed,
    guarded,
    identity,
    is_ready,
    lists_its_name,
    long_texts,
    nearness,
    neighbours,
    norm,
)
from components.deploy.verification.load_checks import behaviour, latency
from components.deploy.verification.retrieval_check import TestSet, retrieval


@dataclass(frozen=True)
class Requirements:
    """What is asked of a service beside its vectors.

    ``previous_latency`` are figures of the release before, shown beside the new ones.
    """

    latency_budget_ms: float | None = None
    previous_latency: dict[str, float] | None = None
    test_set: TestSet | None = None


def verify_endpoint(
    endpoint: EmbeddingClient, bundle: Bundle, requirements: Requirements | None = None, *, brief: bool = False
) -> list[Check]:
    """Every check of ``endpoint`` against the reference vectors of ``bundle``; a check that cannot run has failed.

    ``brief`` asks for each probe once and leaves out what needs more.
    """
    wanted = requirements or Requirements()
    checks = [
        guarded("ready", "answers 200", lambda: is_ready(endpoint)),
        guarded("model name", f"'{endpoint.model}' is listed", lambda: lists_its_name(endpoint)),
    ]
    try:
        vectors = embed(endpoint, bundle.probes, BATCH)
    except StageError as error:
        return [*checks, Check("vectors", False, {"error": str(error)}, "one finite vector for each probe")]
    checks.append(Check("vectors", True, {"probes": len(vectors)}, "one finite vector for each probe"))
    expected = bundle.manifest.dimension
    checks.append(Check("dimension", vectors.shape[1] == expected, {"found": vectors.shape[1]}, f"{expected}"))
    if checks[-1].passed:
        served = ProbedEndpoint(endpoint, bundle, vectors)
        checks += [norm(served), nearness(served), long_texts(served), neighbours(served), identity(served)]
        checks += [] if brief else _thorough(served, wanted)
    checks.append(Check("retries", endpoint.retries == 0, {"retries": endpoint.retries}, "0"))
    return checks


def _thorough(served: ProbedEndpoint, wanted: Requirements) -> list[Check]:
    checks = behaviour(served)
    if wanted.test_set:
        checks.append(_tried("test set", lambda: retrieval(served, wanted.test_set)))
    return [*checks, latency(served, wanted.latency_budget_ms, wanted.previous_latency)]


def _tried(name: str, ask: Callable[[], Check]) -> Check:
    try:
        return ask()
    except StageError as error:
        return Check(name, False, {"error": str(error)}, "answers")


def list_failures(checks: list[Check]) -> list[str]:
    """The checks that failed, one text each."""
    return [" ".join(str(check).split()) for check in checks if check.passed is False]


def extract_latency(checks: list[Check]) -> dict[str, float]:
    """The figures of ``latency`` among ``checks``, without those of the release before."""
    found = next((check.figures for check in checks if check.name == "latency"), {})
    return {
        name: value for name, value in found.items() if name.endswith(("_ms", "_second")) and "previous" not in name
    }
