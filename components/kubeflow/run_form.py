"""The run form of a compiled pipeline: its fields, derived from the stages' settings, and what may be filled in."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import typing
from collections.abc import Iterable, Mapping
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
    """What is decided when a pipeline is compiled; ``configs`` are the settings of each of its stages.

    ``queue`` is the Kueue LocalQueue in which GPU stages wait; ``cache_claim`` the volume that keeps base models.
    """

    configs: Mapping[str, Settings]
    images: Mapping[str, str]
    node_labels: str = "gfd"
    queue: str | None = None
    cache_claim: str | None = None

    def asks_for_gpu(self, stage: Stage) -> bool:
        """Whether the task of ``stage`` asks for a GPU node."""
        return stage.node.gpu is not None and self.node_labels != NO_GPU


def form_fields(plan: Plan, options: Options) -> Iterable[tuple[str, Any, Any]]:
    """Name, type and default of each field of the run form, in the order in which a person fills it in."""
    for name in plan.brought:
        yield f"{name}_uri", str, NO_DEFAULT
    for name in plan.brought_by_uri:
        yield f"{name}_uri", str, ""
    said: dict[str, Any] = {}
    for name, field in form_settings(plan.stages).items():
        owner = next(stage for stage in plan.stages if name in stage.config.model_fields)
        said[name] = getattr(options.configs[owner.name], name)
        yield name, kfp_type(field.annotation), kfp_value(field.annotation, said[name])
    if encoders := [stage for stage in plan.stages if issubclass(stage.config, EncoderConfig)]:
        shared = _unsaid(options.configs[encoders[0].name], EncoderConfig, said)
        said |= shared
        yield ENCODER_OVERRIDES, dict, shared
    for stage in plan.stages:
        yield f"{stage.name}_{OVERRIDES}", dict, _unsaid(options.configs[stage.name], stage.config, said)
    gpu_stages = [stage for stage in plan.stages if options.asks_for_gpu(stage)]
    for stage in gpu_stages:
        yield f"{stage.name}_node_selector", dict, NODE_LABELS[options.node_labels][stage.node.gpu]
        yield f"{stage.name}_{GPU_COUNT}", str, "1"
    if gpu_stages:
        yield "gpu_tolerations", list, GPU_TOLERATIONS


def _unsaid(config: Settings, model: type[Settings], said: Mapping[str, Any]) -> dict[str, Any]:
    """Values in ``config`` of ``model``'s settings that are neither the default nor what ``said`` says already."""
    values = config.model_dump(mode="json", include=set(model.model_fields))
    return {name: v for name, v in values.items() if v != said.get(name, model.model_fields[name].default)}


def override_inputs(stage: Stage) -> tuple[str, ...]:
    """The inputs of the component of ``stage`` that take the settings which stand in no form."""
    return (OVERRIDES, ENCODER_OVERRIDES) if issubclass(stage.config, EncoderConfig) else (OVERRIDES,)


def override_parameter(stage: Stage, name: str) -> str:
    """The field of the form that goes into the input ``name``, one of ``override_inputs``."""
    return name if name == ENCODER_OVERRIDES else f"{stage.name}_{name}"


def kfp_type(annotation: Any) -> Any:
    """The type that KFP knows for a setting's type; one that may be null is a text, empty for null.

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
    """A setting's ``value`` as a field of that type has it."""
    if is_optional(annotation):
        return "" if value is None else str(value)
    return value


def arguments(plan: Plan, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` as arguments of the run, checked by the stages' own models; texts are read as on the command line.

    Raises InputError for unknown and missing fields and for values that a stage would refuse.
    """
    fields = {name: (kind, default) for name, kind, default in form_fields(plan, options)}
    values = {}
    for name, value in given.items():
        if name not in fields:
            close = difflib.get_close_matches(name, list(fields), n=1)
            raise InputError(f"the form has no field '{name}'" + (f": did you mean '{close[0]}'?" if close else ""))
        kind = fields[name][0]
        values[name] = value if kind is str or not isinstance(value, str) else _read(name, kind, value)
        if not isinstance(values[name], (int, float) if kind is float else kind):
            raise InputError(f"{name} = {value!r}: expected {_KINDS[kind]}")
    missing = [name for name, (_, default) in fields.items() if default is NO_DEFAULT and not values.get(name)]
    if missing:
        raise InputError(f"{', '.join(missing)}: give the address as NAME=URI")
    for name in plan.brought + plan.brought_by_uri:
        if uri := values.get(f"{name}_uri"):
            _check_address(plan, name, uri)
    filled = {name: default for name, (_, default) in fields.items()} | values
    for stage in plan.stages:
        parameters = {name: filled[name] for name in form_settings([stage])}
        parameters |= {name: filled[override_parameter(stage, name)] for name in override_inputs(stage)}
        needed = stage.needed_inputs(settings_of(stage, parameters))
        for name in plan.left_out:
            if name in needed:
                raise InputError(f"{stage.name}_{OVERRIDES}: set {stage.replaced_by[name]}, or compile with {name}")
    return values


def _check_address(plan: Plan, name: str, uri: str) -> None:
    """Raises InputError, which does not repeat ``uri``: it may hold a password."""
    scheme, separator, place = uri.partition("://")
    if name in plan.brought and scheme == "hf":
        raise InputError(f"{name}_uri: KFP imports nothing from hf://{_instead(plan, name)}")
    if not separator:
        raise InputError(f"{name}_uri is no address that a cluster can read: give s3://bucket/... or gs://bucket/...")
    if "@" in place.partition("/")[0]:
        raise InputError(f"{name}_uri holds credentials: they come from Secrets or the service account")


def _instead(plan: Plan, name: str) -> str:
    stages = [stage for stage in plan.stages if name in stage.replaced_by]
    return "".join(f": use --without {name}, and {one.replaced_by[name]} of {one.name}_{OVERRIDES}" for one in stages)


def _read(name: str, kind: type, text: str) -> Any:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        # YAML takes 1e-5 for a text.
        return kind(text) if kind in (int, float) else yaml.safe_load(text)
    raise InputError(f"{name} = {text!r}: expected {_KINDS[kind]}")
