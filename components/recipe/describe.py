"""The recipe as text: the workflow, and types and defaults of settings as people write them."""

from __future__ import annotations

import types
import typing
from typing import Any

from components.core.artifacts import ARTIFACTS
from components.core.stage import Stage
from components.recipe.profiles import PROFILES
from components.recipe.stages import STAGES

DESCRIPTION = "Fine-tune an embedding model on documents of your own: sdg, prep, finetune, eval, export, deploy."


def describe_workflow() -> str:
    """Return the stages with what they read and make, and the profiles."""
    lines = [DESCRIPTION, ""]
    for number, stage in enumerate(STAGES, 1):
        lines.append(f"{number}. {stage.name}: {stage.summary}")
        lines.append(f"     reads  {', '.join(stage.inputs + stage.by_uri)}")
        if stage.optional_inputs:
            lines.append(f"     and    {', '.join(stage.optional_inputs)}, when there is one")
        lines.append(f"     makes  {', '.join(stage.outputs)}")
        lines.append(f"     runs   in the {stage.image} image, {_describe_node(stage)}")
    lines += ["", "Export and deploy run only when eval passed its gate.", "", "Artifacts:"]
    lines += [f"  {t.name:<18} {t.kfp_type:<9} {t.summary}" for t in ARTIFACTS.values() if t.kfp_type != "Metrics"]
    lines += ["", f"Profiles: {', '.join(PROFILES)}", "", "python -m components STAGE --help shows every setting."]
    return "\n".join(lines)


def _describe_node(stage: Stage) -> str:
    return f"one {stage.node.gpu} GPU" if stage.node.gpu else f"no GPU, {stage.node.cpu} CPUs"


def format_type(annotation: Any) -> str:
    """Return a setting's type as a person writes it: ``int``, ``avg|cls|last``, ``int or null``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "|".join(str(v) for v in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        names = [format_type(a) for a in typing.get_args(annotation) if a is not type(None)]
        optional = type(None) in typing.get_args(annotation)
        return " or ".join([*names, "null"] if optional else names)
    if origin is typing.Annotated:
        return format_type(typing.get_args(annotation)[0])
    if origin is list:
        return f"[{format_type(typing.get_args(annotation)[0])}, ...]"
    return str((origin or annotation).__name__)


def format_value(value: Any) -> str:
    """Return a default as a person reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if value == "" or (isinstance(value, str) and value != value.strip()) else str(value)
