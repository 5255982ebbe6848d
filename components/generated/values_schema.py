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


def derived(text: str) -> str:
    """``text``, the schema as JSON, with the derived parts as the declarations say."""
    schema = json.loads(text)
    schema["definitions"]["start"] = {"enum": list(NAMES)}
    values = schema["properties"]
    values |= _PLACEMENT
    made = values["secrets"]["properties"]
    made["create"] = _secrets({"type": "string", "minLength": 1})
    made["external"]["properties"]["secrets"] = _secrets(
        _closed({name: {"type": "string"} for name in ("key", "property", "version")}, required=["key"])
    )
    pipelines = values["pipelines"]["properties"]
    pipelines["profile"] = {"enum": sorted(PROFILES)}
    pipelines["set"] = _closed(_every_setting())
    pipelines["schedules"]["items"]["properties"]["parameters"] = _closed(_form())
    optional = dict.fromkeys(name for stage in STAGES for name in stage.optional_inputs)
    pipelines["schedules"]["items"]["properties"]["with"]["items"] = {"enum": list(optional)}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _secrets(value: dict[str, Any]) -> dict[str, Any]:
    """Secrets by name, each with a ``value`` for its keys; a Secret with one key needs it."""
    keys: dict[str, list[str]] = {}
    for secret in (secret for stage in STAGES for secret in stage.secrets):
        known = keys.setdefault(secret.name, [])
        known += [] if secret.key in known else [secret.key]
    found = {}
    for name, names in (keys | _NIM_SECRETS).items():
        data = _closed(dict.fromkeys(sorted(names), value), required=names if len(names) == 1 else None)
        content = {"annotations": _ANNOTATIONS, "data": data | {"minProperties": 1}}
        found[name] = _closed(content, required=["data"])
    return _closed(found)


def _closed(properties: dict[str, Any], *, required: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    return found | ({"required": required} if required else {})


def _every_setting() -> dict[str, Any]:
    """``stage.setting`` of all stages; a setting that means the same wherever it is, also by its name alone."""
    found: dict[str, Any] = {}
    meanings: dict[str, list[Any]] = {}
    for stage in STAGES:
        for name, part in _settings(stage.config).items():
            meanings.setdefault(name, []).append(part)
            found[f"{stage.name}.{name}"] = part
    return {name: parts[0] for name, parts in meanings.items() if all(part == parts[0] for part in parts)} | found


def _form() -> dict[str, Any]:
    """The fields of the run forms of all starts."""
    found: dict[str, Any] = {f"{name}_uri": _TEXT for name, kind in ARTIFACTS.items() if kind.kfp_type != "Metrics"}
    every = {name: part for stage in STAGES for name, part in _settings(stage.config).items()}
    found |= {name: _not_null(every[name]) for name in form_settings(STAGES)}
    found["encoder_overrides"] = _closed(_settings(EncoderConfig))
    for stage in STAGES:
        found[f"{stage.name}_overrides"] = _closed(_settings(stage.config))
        if stage.node.gpu:
            found[f"{stage.name}_node_selector"] = {"type": "object", "additionalProperties": {"type": "string"}}
            found[f"{stage.name}_gpu_count"] = {"type": "string", "pattern": "^[0-9]+$"}
    return found | {"gpu_tolerations": {"type": "array", "items": {"type": "object"}}}


_TEXT = {"type": "string", "minLength": 1}


def _settings(model: type[Settings]) -> dict[str, Any]:
    """JSON Schema of each setting, nested models in their place; defaults are left to the stage."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _plain(part, definitions) for name, part in schema["properties"].items()}


def _plain(part: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_plain(one, definitions) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _plain(definitions[part["$ref"].rpartition("/")[2]], definitions)
    kept = {key: value for key, value in part.items() if key not in ("title", "default", "form", "affects_result")}
    if "properties" in kept:
        inner = {name: _plain(one, definitions) for name, one in kept.pop("properties").items()}
        return {key: _plain(value, definitions) for key, value in kept.items()} | {"properties": inner}
    return {key: _plain(value, definitions) for key, value in kept.items()}


def _not_null(part: dict[str, Any]) -> dict[str, Any]:
    """KFP's form knows no null: a field that is left out has its default."""
    if "anyOf" not in part:
        return part
    return part | {"anyOf": [one for one in part["anyOf"] if one != {"type": "null"}]}
