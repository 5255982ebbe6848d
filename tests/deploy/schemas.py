"""Objects against KServe's own schemas, unknown fields refused as the API server does.

The schemas are KServe's: KSERVE_CRDS names the directory that holds them, ``config/crd/full`` of kserve/kserve. Without
it nothing is checked by them, and the tests that need them are skipped.
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
FILES = {
    "InferenceService": "serving.kserve.io_inferenceservices.yaml",
    "ServingRuntime": "serving.kserve.io_servingruntimes.yaml",
    # Of k8s-nim-operator, config/crd/bases; copy it beside the others.
    "NIMService": "apps.nvidia.com_nimservices.yaml",
}
needed = pytest.mark.skipif(not DIRECTORY, reason="set KSERVE_CRDS to config/crd/full of kserve/kserve")


def problems(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and message of everything in ``body`` that its schema refuses; nothing for kinds without one."""
    if DIRECTORY and body["kind"] in FILES and (Path(DIRECTORY) / FILES[body["kind"]]).is_file():
        for error in _validator(body["kind"]).iter_errors(body):
            yield "".join(f".{part}" for part in error.path), error.message


@functools.cache
def _validator(kind: str) -> Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load((Path(DIRECTORY or "") / FILES[kind]).read_text(encoding="utf-8"), Loader=loader)
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
