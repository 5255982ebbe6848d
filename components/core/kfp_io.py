"""Between KFP's executor input and a stage: which paths and settings came in, what is reported back.

The images need no kfp: the launcher hands over one JSON text (``{{$}}``) and reads ``executor_output.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.artifacts import ARTIFACTS
from components.core.errors import InputError
from components.core.runner import Outcome, Source, execute
from components.core.settings import is_optional, load, parse_text
from components.core.stage import Stage

# kfp backend/src/v2/objectstore: LocalPathForURI
_MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}
OVERRIDES = "overrides"
# Shared by every stage that encodes, so that what they must agree on is typed once.
ENCODER_OVERRIDES = "encoder_overrides"


def run_from_executor_input(stage: Stage, text: str) -> None:
    """Run ``stage`` as a KFP task: ``text`` is the executor input, the answer goes to its ``outputFile``.

    Raises InputError for settings or artifacts that the stage refuses, before any work.
    """
    message = json.loads(text)
    received = message.get("inputs", {})
    offered = message.get("outputs", {})
    parameters = received.get("parameterValues", {})
    config = settings_of(stage, parameters)
    inputs, uris = {}, {}
    for name in stage.inputs + stage.optional_inputs:
        artifacts = received.get("artifacts", {}).get(name, {}).get("artifacts", [])
        if artifacts:
            sealed = bool(artifacts[0].get("metadata", {}).get("manifest_sha256"))
            inputs[name] = Source(local_path(artifacts[0]), sealed=sealed)
            uris[name] = artifacts[0]["uri"]
    new_artifacts = {
        name: entry["artifacts"][0] for name, entry in offered.get("artifacts", {}).items() if name in ARTIFACTS
    }
    uris |= {name: artifact["uri"] for name, artifact in new_artifacts.items()}
    uris |= {name: parameters[f"{name}_uri"] for name in stage.by_uri}
    outputs = {name: local_path(artifact) for name, artifact in new_artifacts.items()}
    outcome = execute(stage, config, inputs=inputs, outputs=outputs, uris=uris)
    _write_executor_output(stage, Path(offered["outputFile"]), new_artifacts, outcome)


def local_path(artifact: Mapping[str, Any]) -> Path:
    """Where the launcher put (or expects) the artifact; kfp.local uses plain paths as URIs."""
    if artifact.get("customPath"):
        return Path(artifact["customPath"])
    uri = artifact["uri"]
    path = uri
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            path = mount + uri.removeprefix(scheme)
    if uri.startswith("oci://"):
        path = "/oci/" + uri.removeprefix("oci://").replace("/", "_") + "/models"
    if artifact.get("metadata", {}).get("_kfp_workspace") is True:
        path = "/kfp-workspace/.artifacts/" + path.lstrip("/")
    return Path(path)


def settings_of(stage: Stage, parameters: Mapping[str, Any]) -> Any:
    """The settings of ``stage`` in KFP's ``parameters``; the compiler adds parameters of its own, which are none.

    Raises InputError for wrong ones.
    """
    values = {name: _from_form(stage, name, v) for name, v in parameters.items() if name in stage.config.model_fields}
    for name in (ENCODER_OVERRIDES, OVERRIDES):
        overrides = parameters.get(name) or {}
        if not isinstance(overrides, dict):
            raise InputError(f"{stage.name}: {name}: expected a dictionary of settings, found {overrides!r}")
        values |= overrides
    # A Struct knows one kind of number, so 3 may arrive as 3.0.
    return load(stage.config, {name: _whole(value) for name, value in values.items()}, stage=stage.name)


def _from_form(stage: Stage, name: str, value: Any) -> Any:
    """A setting that may be null is a text in KFP's run form, empty for null."""
    if isinstance(value, str) and is_optional(stage.config.model_fields[name].annotation):
        return parse_text(stage.config, name, value) if value else None
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(v) for v in value]
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    return value


def _write_executor_output(stage: Stage, path: Path, new_artifacts: Mapping[str, Any], outcome: Outcome) -> None:
    """Write executor_output.json: every declared artifact and output parameter, no null and no NaN."""
    artifacts = {}
    for name, artifact in new_artifacts.items():
        kind = ARTIFACTS[name]
        metadata: dict[str, Any] = {"kind": name, "schema_version": kind.schema_version}
        if name in outcome.digests:
            metadata["manifest_sha256"] = outcome.digests[name]
        if name == stage.metrics_artifact:
            metadata |= {k: float(v) for k, v in outcome.metrics.items() if not isinstance(v, str) and math.isfinite(v)}
        artifacts[name] = {"artifacts": [{"name": artifact["name"], "uri": artifact["uri"], "metadata": metadata}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"artifacts": artifacts, "parameterValues": outcome.results}
    path.write_text(json.dumps(body, allow_nan=False), encoding="utf-8")
