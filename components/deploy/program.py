"""Serve the exported model, and publish the proof that it is the one that answers."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

from components.core.errors import InputError
from components.core.history import Promotion, RunContext, read_run_context
from components.core.serving.bundle import Bundle, read_bundle
from components.deploy.component import DeployConfig
from components.deploy.publishing.publish import ModelUris
from components.deploy.result import DeployResult
from components.deploy.targets import local
from components.deploy.verification.retrieval_check import TestSet, read_test_set

Target = Callable[[DeployConfig, Bundle, ModelUris, TestSet | None], DeployResult]
_log = logging.getLogger(__name__)


def run(
    config: DeployConfig,
    *,
    deploy_bundle: Path,
    eval_data: Path | None = None,
    eval_results: Path | None = None,
    past_runs: Path | None = None,
    exported_model_uri: str,
    checkpoint_uri: str,
    deployment: Path,
) -> dict[str, float | int | bool | str]:
    """Deploy to the target; write ``deployment.json``, ``verification.json`` and the objects of a cluster.

    In ``past_runs`` the model becomes the champion that the next run has to beat.

    Raises InputError before anything is started, ActionNeeded when the model does not serve as exported, Transient
    when running again may help; what served before serves on.
    """
    bundle = read_bundle(deploy_bundle)
    models = ModelUris(exported_model_uri, checkpoint_uri)
    deploy = _load_target(config.target)
    result = deploy(config, bundle, models, _read_test_set(config, eval_data, eval_results))
    result.write(config, deployment)
    if result.checks:
        _log.info("%s is served at %s", config.served_model_name, result.endpoint)
    # What waits in a pull request is not served yet.
    if result.checks and (context := read_run_context(past_runs)):
        _promote(context, Promotion(target=config.target, endpoint=result.endpoint, digest=result.digest))
    if result.service and not config.detach:
        local.serve_in_foreground(config, result.service)
    return result.figures()


def _promote(run: RunContext, promotion: Promotion) -> None:
    """Make the model of ``run`` the champion. The one before stays for a roll-back, older ones go."""
    run.history.write(run.name, promotion)
    _log.info("run %s", run.history.read_run(run.name).summary())
    if run.champion:
        run.history.delete_artifacts_before(run.champion)


def _read_test_set(config: DeployConfig, eval_data: Path | None, eval_results: Path | None) -> TestSet | None:
    if not (eval_data and eval_results and config.eval_max_passages):
        return None
    test_set = read_test_set(eval_data, eval_results, max_passages=config.eval_max_passages)
    if test_set is None:
        _log.info("the test set is not searched through the service: it judges documents, or is too large")
    return test_set


def _load_target(name: str) -> Target:
    """Return the function that deploys to a target: only those in a cluster need the package kubernetes."""
    try:
        target: Target = importlib.import_module(f"components.deploy.targets.{name}").deploy
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("components"):
            raise
        raise InputError(f"target={name} needs the package '{error.name}': pip install '.[deploy]'") from None
    return target
