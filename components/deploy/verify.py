"""python -m components.deploy.verify: whether an endpoint serves the fine-tuned model, by the vectors it gives."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from components.core.errors import ActionNeeded, StageError
from components.core.serving.client import EmbeddingClient
from components.deploy.publishing.storage import load_bundle
from components.deploy.settings.rollout_settings import Verification
from components.deploy.verification.check_table import format_table
from components.deploy.verification.retrieval_check import read_test_set
from components.deploy.verification.verify_endpoint import Requirements, list_failures, verify_endpoint

NOT_VERIFIED = 3


def main(argv: list[str] | None = None) -> int:
    """Print every check of an endpoint as a table. Return 0 when none failed, 3 when one did, 2 for bad input."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        bundle = load_bundle(args.bundle)
        test_set = None
        if args.eval_data and args.eval_results:
            test_set = read_test_set(args.eval_data, args.eval_results, max_passages=args.eval_max_passages)
        wanted = Requirements(args.latency_budget_ms, None, test_set)
        key = os.environ.get(args.api_key_env)
        with EmbeddingClient(args.url, args.model, api_key=key, api=args.api) as endpoint:
            _wait(endpoint, args.wait_seconds)
            checks = verify_endpoint(endpoint, bundle, wanted)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(format_table(checks))
    return NOT_VERIFIED if list_failures(checks) else 0


def _wait(endpoint: EmbeddingClient, seconds: float) -> None:
    """After a sync the pods may still start."""
    deadline = time.monotonic() + seconds
    while not endpoint.is_ready():
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
