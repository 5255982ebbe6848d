"""Whether an endpoint serves the fine-tuned model, by the vectors it gives."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.core.bundle import Bundle
from components.core.endpoint import Endpoint
from components.core.errors import ActionNeeded, StageError
from components.deploy.behaviour import behaviour, latency
from components.deploy.checks import (
    BATCH,
    Check,
    Served,
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
from components.deploy.report import as_table
from components.deploy.retrieval import TestSet, read_test_set, retrieval
from components.deploy.rollout_settings import Verification
from components.deploy.storage import bundle_at

NOT_VERIFIED = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requirements:
    """What is asked of a service beside its vectors.

    ``previous_latency`` are figures of the release before, shown beside the new ones.
    """

    latency_budget_ms: float | None = None
    previous_latency: dict[str, float] | None = None
    test_set: TestSet | None = None


def verify(
    endpoint: Endpoint, bundle: Bundle, requirements: Requirements | None = None, *, brief: bool = False
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
        served = Served(endpoint, bundle, vectors)
        checks += [norm(served), nearness(served), long_texts(served), neighbours(served), identity(served)]
        checks += [] if brief else _thorough(served, wanted)
    checks.append(Check("retries", endpoint.retries == 0, {"retries": endpoint.retries}, "0"))
    return checks


def _thorough(served: Served, wanted: Requirements) -> list[Check]:
    checks = behaviour(served)
    if wanted.test_set:
        checks.append(_tried("test set", lambda: retrieval(served, wanted.test_set)))
    return [*checks, latency(served, wanted.latency_budget_ms, wanted.previous_latency)]


def _tried(name: str, ask: Callable[[], Check]) -> Check:
    try:
        return ask()
    except StageError as error:
        return Check(name, False, {"error": str(error)}, "answers")


def failures(checks: list[Check]) -> list[str]:
    """The checks that failed, one text each."""
    return [" ".join(str(check).split()) for check in checks if check.passed is False]


def latency_figures(checks: list[Check]) -> dict[str, float]:
    """The figures of ``latency`` among ``checks``, without those of the release before."""
    found = next((check.figures for check in checks if check.name == "latency"), {})
    return {
        name: value for name, value in found.items() if name.endswith(("_ms", "_second")) and "previous" not in name
    }


def main(argv: list[str] | None = None) -> int:
    """Print every check of an endpoint as a table. Return 0 when none failed, 3 when one did, 2 for bad input."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        bundle = bundle_at(args.bundle)
        test_set = None
        if args.eval_data and args.eval_results:
            test_set = read_test_set(args.eval_data, args.eval_results, max_passages=args.eval_max_passages)
        wanted = Requirements(args.latency_budget_ms, None, test_set)
        key = os.environ.get(args.api_key_env)
        with Endpoint(args.url, args.model, api_key=key, api=args.api) as endpoint:
            _wait(endpoint, args.wait_seconds)
            checks = verify(endpoint, bundle, wanted)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(as_table(checks))
    return NOT_VERIFIED if failures(checks) else 0


def _wait(endpoint: Endpoint, seconds: float) -> None:
    """After a sync the pods may still start."""
    deadline = time.monotonic() + seconds
    while not endpoint.ready():
        if time.monotonic() > deadline:
            if seconds:
                raise ActionNeeded(f"{endpoint.url} was not ready within {seconds:g} s: look at its pods")
            return
        time.sleep(min(2.0, max(seconds / 10, 0.01)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.deploy.verify", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the service, without /v1")
    parser.add_argument("--model", required=True, help="name that the service answers to")
    parser.add_argument(
        "--bundle", required=True, help="deploy_bundle that export made: directory or URI (s3://, gs://)"
    )
    parser.add_argument("--api", choices=("nim", "vllm"), default="nim", help="what the service speaks (default: nim)")
    parser.add_argument("--api-key-env", default="NIM_API_KEY", help="environment variable with the key, if one is set")
    parser.add_argument("--wait-seconds", type=float, default=0.0, help="wait so long for a service that starts")
    budget = Verification.model_fields["latency_budget_ms"]
    parser.add_argument("--latency-budget-ms", type=float, help=budget.description)
    parser.add_argument("--eval-data", type=Path, help="test set to search through the service, in BEIR format")
    parser.add_argument("--eval-results", type=Path, help="what eval measured on it with the checkpoint")
    most = Verification.model_fields["eval_max_passages"]
    parser.add_argument("--eval-max-passages", type=int, default=most.default, help=most.description)
    return parser


if __name__ == "__main__":
    sys.exit(main())
