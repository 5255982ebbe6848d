"""Objects against the schemas of KServe and KFP, unknown fields refused as the API server does.

The schemas are theirs: KSERVE_CRDS names the directory that holds KServe's, ``config/crd/full`` of kserve/kserve, and
KFP_CRDS that of KFP's, ``manifests/kustomize/base/crds`` of kubeflow/pipelines. Without them nothing is checked by
them, and the tests that need them are skipped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

DIRECTORY = os.environ.get("KSERVE_CRDS")
KFP_DIRECTORY = os.environ.get("KFP_CRDS")
KFP_FILES = {
    "Pipeline": "pipelines.kubeflow.org_pipelines.yaml",
    "PipelineVersion": "pipelines.kubeflow.org_pipelineversions.yaml",
}
FILES = {
    "InferenceService": "serving.kserve.io_inferenceservices.yaml",
    "ServingRuntime": "serving.kserve.io_servingruntimes.yaml",
    # Of k8s-nim-operator, config/crd/bases; copy it beside the others.
    "NIMService": "apps.nvidia.com_nimservices.yaml",
}
kfp_needed = pytest.mark.skipif(not KFP_DIRECTORY, reason="set KFP_CRDS to manifests/kustomize/base/crds of KFP")
needed = pytest.mark.skipif(not DIRECTORY, reason="set KSERVE_CRDS to config/crd/full of kserve/kserve")


def problems(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and message of everything in ``body`` that its schema refuses; nothing for kinds without one."""
    for directory, files in ((DIRECTORY, FILES), (KFP_DIRECTORY, KFP_FILES)):
        path = Path(directory or "") / files.get(body["kind"], "")
        if directory and path.is_file():
            for error in _validator(path).iter_errors(body):
                yield "".join(f".{part}" for part in error.path), error.message


@functools.cache
def _validator(path: Path) -> Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(_strict(schema) | {"additionalProperties": False})


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema: what it does not name is refused."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema:
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict
