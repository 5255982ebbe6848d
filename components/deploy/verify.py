"""Whether an endpoint serves the fine-tuned model, by the vectors it gives."""

from __future__ import annotations

import argparse
import os
import sys

from components.core.bundle import Bundle
from components.core.endpoint import Endpoint
from components.core.errors import StageError
from components.deploy.checks import (
    BATCH,
    Check,
    Served,
    behaviour,
    embed,
    guarded,
    identity,
    is_ready,
    lists_its_name,
    nearness,
    norm,
)
from components.deploy.storage import bundle_at

NOT_VERIFIED = 3


def verify(endpoint: Endpoint, bundle: Bundle, *, brief: bool = False) -> list[Check]:
    """Every check of ``endpoint`` against the reference vectors of ``bundle``; a check that cannot run has failed.

    ``brief`` asks for each probe once and leaves out what needs more.
    """
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
        checks += [norm(served), nearness(served), identity(served)]
        checks += [] if brief else behaviour(served)
    checks.append(Check("retries", endpoint.retries == 0, {"retries": endpoint.retries}, "0"))
    return checks


def failures(checks: list[Check]) -> list[str]:
    """The checks that failed, one text each."""
    return [" ".join(str(check).split()) for check in checks if check.passed is False]


def main(argv: list[str] | None = None) -> int:
    """Print every check of an endpoint. Return 0 when none failed, 3 when one did, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m components.deploy.verify", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the service, without /v1")
    parser.add_argument("--model", required=True, help="name that the service answers to")
    parser.add_argument(
        "--bundle", required=True, help="deploy_bundle that export made: directory or URI (s3://, gs://)"
    )
    parser.add_argument("--api-key-env", default="NIM_API_KEY", help="environment variable with the key, if one is set")
    args = parser.parse_args(argv)
    try:
        bundle = bundle_at(args.bundle)
        with Endpoint(args.url, args.model, api_key=os.environ.get(args.api_key_env)) as endpoint:
            checks = verify(endpoint, bundle)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(map(str, checks)))
    return NOT_VERIFIED if failures(checks) else 0


if __name__ == "__main__":
    sys.exit(main())
