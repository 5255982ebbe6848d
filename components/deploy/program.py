"""Serve the exported model and publish the proof that it is the one that answers."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from components.core.bundle import read_bundle
from components.core.errors import InputError
from components.deploy.component import DeployConfig
from components.deploy.local import Deployed, deploy, serve_in_foreground

_log = logging.getLogger(__name__)


def run(
    config: DeployConfig, *, deploy_bundle: Path, exported_model_uri: str, deployment: Path
) -> dict[str, float | int | bool | str]:
    """Deploy to the target; write ``deployment.json`` and ``verification.json``.

    Raises InputError before anything is started, ActionNeeded when the model does not serve as exported; what served
    before serves on.
    """
    bundle = read_bundle(deploy_bundle)
    deployed = deploy(config, bundle, _local_directory(exported_model_uri))
    _write(config, deployed, deployment)
    _log.info("%s is served at %s", config.served_model_name, deployed.service.url)
    if not config.detach:
        serve_in_foreground(config, deployed.service)
    cosine = next(check.figures for check in deployed.live if check.name == "cosine to fine-tuned")
    return {
        "endpoint": deployed.service.url,
        "served_mean_cosine": cosine["mean"],
        "served_min_cosine": cosine["min"],
        "checks_passed": sum(check.passed is True for check in deployed.checks),
        "checks_skipped": sum(check.passed is None for check in deployed.checks),
        "digest": deployed.service.digest,
    }


def _local_directory(uri: str) -> Path:
    """The directory that a path or a file:// URI names."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise InputError(f"exported_model is at {uri}: target=local serves only a directory of this machine")
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not path.is_dir():
        raise InputError(f"exported_model: there is no directory {path}: give the one that export made")
    return path


def _write(config: DeployConfig, deployed: Deployed, directory: Path) -> None:
    service = deployed.service
    directory.mkdir(parents=True)
    about = {
        "endpoint": service.url,
        "model": service.name,
        "target": config.target,
        "digest": service.digest,
        "process": service.model_dump(mode="json"),
    }
    proof = {
        "checks": [asdict(check) for check in deployed.checks],
        "after_switch": [asdict(check) for check in deployed.live],
    }
    _write_json(directory / "deployment.json", about)
    _write_json(directory / "verification.json", proof)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
