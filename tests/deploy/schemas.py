"""Objects against KServe's own schemas, unknown fields refused as the API server does."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).parent / "crds"
FILES = {"InferenceService": "inferenceservices.yaml", "ServingRuntime": "servingruntimes.yaml"}


def problems(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and message of everything in ``body`` that its schema refuses; nothing for kinds without one."""
    if body["kind"] in FILES:
        for error in _validator(body["kind"]).iter_errors(body):
            yield "".join(f".{part}" for part in error.path), error.message


@functools.cache
def _validator(kind: str) -> Draft202012Validator:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    schema = yaml.load((SCHEMAS / FILES[kind]).read_text(encoding="utf-8"), Loader=loader)
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
