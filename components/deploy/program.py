"""Serve the exported model and publish the proof that it is the one that answers."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType

from components.core.bundle import read_bundle
from components.core.errors import InputError
from components.deploy import local
from components.deploy.component import DeployConfig

_log = logging.getLogger(__name__)


def run(
    config: DeployConfig, *, deploy_bundle: Path, exported_model_uri: str, deployment: Path
) -> dict[str, float | int | bool | str]:
    """Deploy to the target; write ``deployment.json``, ``verification.json`` and the objects of a cluster.

    Raises InputError before anything is started, ActionNeeded when the model does not serve as exported, Transient
    when running again may help; what served before serves on.
    """
    bundle = read_bundle(deploy_bundle)
    deployed = _target(config.target).deploy(config, bundle, exported_model_uri)
    deployed.write(config, deployment)
    if deployed.checks:
        _log.info("%s is served at %s", config.served_model_name, deployed.endpoint)
    if deployed.service and not config.detach:
        local.serve_in_foreground(config, deployed.service)
    return deployed.figures()


def _target(name: str) -> ModuleType:
    """The module of the target, by name: only those in a cluster need the Kubernetes client."""
    try:
        return importlib.import_module(f"components.deploy.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("components"):
            raise
        raise InputError(f"target={name} needs the package '{error.name}': pip install '.[deploy]'") from None
