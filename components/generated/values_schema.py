"""The parts of the chart's values.schema.json that the stages' declarations decide: Secrets, settings, starts."""

from __future__ import annotations

import json
from typing import Any

from components.core.artifacts import ARTIFACTS
from components.core.encoder.config import EncoderConfig
from components.core.settings import Settings
from components.recipe.plan import form_settings
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, STAGES

# What a NIM needs besides what the stages read.
_NIM_SECRETS = {"ngc-api": ["NGC_API_KEY"], "ngc-pull": ["NGC_API_KEY"]}
# How the Jobs' pipelines are compiled for the cluster: --queue, --cache-claim.
_SWITCH = {"type": "boolean"}
_PLACEMENT = {
    "kueue": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "enabled": _SWITCH,
            "localQueue": {"$ref": "#/definitions/name"},
            "clusterQueue": {"type": "string", "pattern": "^([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?)?$"},
        },
    },
    "cache": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "enabled": _SWITCH,
            "size": {"type": "string", "pattern": "^[0-9]+[MGT]i$"},
            "storageClassName": {"type": "string"},
            "accessModes": {
                "type": "array",
                "items": {"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]},
                "minItems": 1,
                "uniqueItems": True,
            },
        },
    },
    "openshift": _SWITCH,
}
_ANNOTATIONS = {"$ref": "#/definitions/annotations"}


def update_schema(text: str) -> str:
    """Return ``text``, the schema as JSON, with the derived parts replaced by what the declarations say."""
    schema = json.loads(text)
    schema["definitions"]["start"] = {"enum": list(NAMES)}
    values = schema["properties"]
    values |= _PLACEMENT
    secrets = values["secrets"]["properties"]
    secrets["create"] = _secret_properties({"type": "string", "minLength": 1})
    secrets["external"]["properties"]["secrets"] = _secret_properties(
        _closed_object({name: {"type": "string"} for name in ("key", "property", "version")}, required=["key"])
    )
    pipelines = values["pipelines"]["properties"]
    pipelines["profile"] = {"enum": sorted(PROFILES)}
    pipelines["set"] = _closed_object(_setting_properties())
    pipelines["schedules"]["items"]["properties"]["parameters"] = _closed_object(_form_properties())
    optional = dict.fromkeys(name for stage in STAGES for name in stage.optional_inputs)
    pipelines["schedules"]["items"]["properties"]["with"]["items"] = {"enum": list(optional)}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _secret_properties(value: dict[str, Any]) -> dict[str, Any]:
    """Secrets by name, each with a ``value`` for its keys; a Secret with one key needs it."""
    keys: dict[str, list[str]] = {}
    for secret in (secret for stage in STAGES for secret in stage.secrets):
        known = keys.setdefault(secret.name, [])
        known += [] if secret.key in known else [secret.key]
    properties = {}
    for name, names in (keys | _NIM_SECRETS).items():
        data = _closed_object(dict.fromkeys(sorted(names), value), required=names if len(names) == 1 else None)
        content = {"annotations": _ANNOTATIONS, "data": data | {"minProperties": 1}}
        properties[name] = _closed_object(content, required=["data"])
    return _closed_object(properties)


def _closed_object(properties: dict[str, Any], *, required: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": required} if required else {})


def _setting_properties() -> dict[str, Any]:
    """``stage.setting`` of all stages; a setting that means the same wherever it is, also by its name alone."""
    properties: dict[str, Any] = {}
    meanings: dict[str, list[Any]] = {}
    for stage in STAGES:
        for name, part in _group_properties(stage.config).items():
            meanings.setdefault(name, []).append(part)
            properties[f"{stage.name}.{name}"] = part
    shared = {name: parts[0] for name, parts in meanings.items() if all(part == parts[0] for part in parts)}
    return shared | properties


def _form_properties() -> dict[str, Any]:
    """The fields of the run forms of all starts."""
    properties: dict[str, Any] = {
        f"{name}_uri": _TEXT for name, kind in ARTIFACTS.items() if kind.kfp_type != "Metrics"
    }
    every = {name: part for stage in STAGES for name, part in _group_properties(stage.config).items()}
    properties |= {name: _remove_null(every[name]) for name in form_settings(STAGES)}
    properties["encoder_overrides"] = _closed_object(_group_properties(EncoderConfig))
    for stage in STAGES:
        properties[f"{stage.name}_overrides"] = _closed_object(_group_properties(stage.config))
        if stage.node.gpu:
            properties[f"{stage.name}_node_selector"] = {"type": "object", "additionalProperties": {"type": "string"}}
            properties[f"{stage.name}_gpu_count"] = {"type": "string", "pattern": "^[0-9]+$"}
    return properties | {"gpu_tolerations": {"type": "array", "items": {"type": "object"}}}


_TEXT = {"type": "string", "minLength": 1}


def _group_properties(model: type[Settings]) -> dict[str, Any]:
    """JSON Schema of each setting, nested models in their place; defaults are left to the stage."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _inline(part, definitions) for name, part in schema["properties"].items()}


def _inline(part: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_inline(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inline(definitions[part["$ref"].rpartition("/")[2]], definitions)
    kept = {key: value for key, value in part.items() if key not in ("title", "default", "form", "affects_result")}
    if "properties" in kept:
        inner = {name: _inline(value, definitions) for name, value in kept.pop("properties").items()}
        return {key: _inline(value, definitions) for key, value in kept.items()} | {"properties": inner}
    return {key: _inline(value, definitions) for key, value in kept.items()}


def _remove_null(part: dict[str, Any]) -> dict[str, Any]:
    """KFP's form knows no null: a field that is left out has its default."""
    if "anyOf" not in part:
        return part
    return part | {"anyOf": [choice for choice in part["anyOf"] if choice != {"type": "null"}]}
