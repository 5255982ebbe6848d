"""The run form of a compiled pipeline: its fields, derived from the stages' settings, and checks of their values."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.kfp_io import ENCODER_OVERRIDES, OVERRIDES, settings_of
from components.core.settings import Settings, is_optional
from components.core.stage import Stage
from components.recipe.plan import Plan, form_settings

# The node label that names a GPU product: GPU feature discovery of NVIDIA's GPU operator, GKE, EKS with Karpenter.
NODE_LABELS: dict[str, dict[str, dict[str, str]]] = {
    "gfd": {
        "A100": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "H100": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    },
    "gke": {
        "A100": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
        "H100": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    },
    "eks": {
        "A100": {"karpenter.k8s.aws/instance-gpu-name": "a100"},
        "H100": {"karpenter.k8s.aws/instance-gpu-name": "h100"},
    },
}
NO_GPU = "none"
GPU_COUNT = "gpu_count"
GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
NO_DEFAULT = inspect.Parameter.empty
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


@dataclass(frozen=True)
class Options:
    """How a pipeline is compiled; ``configs`` are the settings of each of its stages.

    ``queue`` is the Kueue LocalQueue in which GPU stages wait; ``cache_claim`` the volume that keeps base models.
    """

    configs: Mapping[str, Settings]
    images: Mapping[str, str]
    node_labels: str = "gfd"
    queue: str | None = None
    cache_claim: str | None = None

    def asks_for_gpu(self, stage: Stage) -> bool:
        """Return whether the task of ``stage`` asks for a GPU node."""
        return stage.node.gpu is not None and self.node_labels != NO_GPU


@dataclass(frozen=True)
class FormField:
    """A field of the run form: its name, the type that KFP knows, and its default; NO_DEFAULT must be filled in."""

    name: str
    kind: Any
    default: Any = NO_DEFAULT


def form_fields(plan: Plan, options: Options) -> list[FormField]:
    """Return the fields of the run form, in the order in which a person fills it in."""
    fields = [FormField(f"{name}_uri", str) for name in plan.required_artifacts]
    fields += [FormField(f"{name}_uri", str, "") for name in plan.uri_artifacts]
    return [*fields, *_settings_fields(plan, options), *_gpu_fields(plan, options)]


def _settings_fields(plan: Plan, options: Options) -> Iterator[FormField]:
    """Yield a field for each setting of the form, then one for the other settings of the encoder and of each stage."""
    defaults: dict[str, Any] = {}
    for name, field in form_settings(plan.stages).items():
        owner = next(stage for stage in plan.stages if name in stage.config.model_fields)
        defaults[name] = getattr(options.configs[owner.name], name)
        yield FormField(name, kfp_type(field.annotation), kfp_value(field.annotation, defaults[name]))
    if encoders := [stage for stage in plan.stages if issubclass(stage.config, EncoderConfig)]:
        shared = _select_overrides(options.configs[encoders[0].name], EncoderConfig, defaults)
        defaults |= shared
        yield FormField(ENCODER_OVERRIDES, dict, shared)
    for stage in plan.stages:
        overrides = _select_overrides(options.configs[stage.name], stage.config, defaults)
        yield FormField(f"{stage.name}_{OVERRIDES}", dict, overrides)


def _gpu_fields(plan: Plan, options: Options) -> Iterator[FormField]:
    gpu_stages = [(stage, stage.node.gpu) for stage in plan.stages if stage.node.gpu and options.asks_for_gpu(stage)]
    for stage, product in gpu_stages:
        yield FormField(f"{stage.name}_node_selector", dict, NODE_LABELS[options.node_labels][product])
        yield FormField(f"{stage.name}_{GPU_COUNT}", str, "1")
    if gpu_stages:
        yield FormField("gpu_tolerations", list, GPU_TOLERATIONS)


def _select_overrides(config: Settings, model: type[Settings], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in ``config`` of ``model``'s settings that differ from their default in the form.

    That default is the one in ``defaults`` for settings that are in the form already, else the declared one.
    """
    values = config.model_dump(mode="json", include=set(model.model_fields))
    return {name: v for name, v in values.items() if v != defaults.get(name, model.model_fields[name].default)}


def override_inputs(stage: Stage) -> tuple[str, ...]:
    """Return the inputs of the component of ``stage`` that take the settings which are not in the form."""
    return (OVERRIDES, ENCODER_OVERRIDES) if issubclass(stage.config, EncoderConfig) else (OVERRIDES,)


def override_parameter(stage: Stage, name: str) -> str:
    """Return the field of the form that goes into the input ``name``, one of ``override_inputs``."""
    return name if name == ENCODER_OVERRIDES else f"{stage.name}_{name}"


def kfp_type(annotation: Any) -> Any:
    """Return the type that KFP knows for a setting's type; one that may be null is a text, empty for null.

    kfp 2.17 has no null in a run form: a parameter without value does not reach the task.
    """
    if is_optional(annotation):
        return str
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return type(typing.get_args(annotation)[0])
    if origin is typing.Annotated:
        return kfp_type(typing.get_args(annotation)[0])
    return origin or annotation


def kfp_value(annotation: Any, value: Any) -> Any:
    """Return a setting's ``value`` as a field of that type has it."""
    if is_optional(annotation):
        return "" if value is None else str(value)
    return value


def read_arguments(plan: Plan, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` as arguments of the run, checked by the stages' own models; texts are read as on the command
    line.

    Raises InputError for unknown and missing fields and for values that a stage would refuse.
    """
    fields = {field.name: field for field in form_fields(plan, options)}
    values = {name: _read_value(fields, name, value) for name, value in given.items()}
    missing = [name for name, field in fields.items() if field.default is NO_DEFAULT and not values.get(name)]
    if missing:
        raise InputError(f"{', '.join(missing)}: give the address as NAME=URI")
    for name in plan.required_artifacts + plan.uri_artifacts:
        if uri := values.get(f"{name}_uri"):
            _check_address(plan, name, uri)
    _check_settings(plan, {name: field.default for name, field in fields.items()} | values)
    return values


def _read_value(fields: Mapping[str, FormField], name: str, value: Any) -> Any:
    if name not in fields:
        close = difflib.get_close_matches(name, list(fields), n=1)
        raise InputError(f"the form has no field '{name}'" + (f": did you mean '{close[0]}'?" if close else ""))
    kind = fields[name].kind
    typed = value if kind is str or not isinstance(value, str) else _parse_text(name, kind, value)
    if not isinstance(typed, (int, float) if kind is float else kind):
        raise InputError(f"{name} = {value!r}: expected {_KINDS[kind]}")
    return typed


def _check_settings(plan: Plan, filled: Mapping[str, Any]) -> None:
    """Raise InputError for values of the ``filled`` form that a stage would refuse."""
    for stage in plan.stages:
        parameters = {name: filled[name] for name in form_settings([stage])}
        parameters |= {name: filled[override_parameter(stage, name)] for name in override_inputs(stage)}
        needed = stage.needed_inputs(settings_of(stage, parameters))
        for name in plan.replaced_artifacts:
            if name in needed:
                raise InputError(f"{stage.name}_{OVERRIDES}: set {stage.replaced_by[name]}, or compile with {name}")


def _check_address(plan: Plan, name: str, uri: str) -> None:
    """Raise InputError for an address that no cluster can read, without repeating it: it may hold a password."""
    scheme, separator, place = uri.partition("://")
    if name in plan.required_artifacts and scheme == "hf":
        raise InputError(f"{name}_uri: KFP imports nothing from hf://{_suggest_setting(plan, name)}")
    if not separator:
        raise InputError(f"{name}_uri is no address that a cluster can read: give s3://bucket/... or gs://bucket/...")
    if "@" in place.partition("/")[0]:
        raise InputError(f"{name}_uri holds credentials: they come from Secrets or the service account")


def _suggest_setting(plan: Plan, name: str) -> str:
    stages = [stage for stage in plan.stages if name in stage.replaced_by]
    return "".join(f": use --without {name}, and {s.replaced_by[name]} of {s.name}_{OVERRIDES}" for s in stages)


def _parse_text(name: str, kind: type, text: str) -> Any:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        # YAML takes 1e-5 for a text.
        return kind(text) if kind in (int, float) else yaml.safe_load(text)
    raise InputError(f"{name} = {text!r}: expected {_KINDS[kind]}")
