"""The plan of a run: its stages, the artifacts that must be given, and the settings of each; no kfp, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from components.core.errors import InputError
from components.core.settings import Settings, is_in_form, load
from components.core.stage import Stage
from components.recipe.profiles import profile
from components.recipe.stages import NAMES, STAGES, by_name


@dataclass(frozen=True)
class Plan:
    """Stages that run one after the other.

    ``required_artifacts`` are read by the stages and made by none of them; ``uri_artifacts`` are those of them that
    every stage takes as a URI only, which may be empty where the settings need none; ``replaced_artifacts`` are inputs
    that a setting stands in for.
    """

    stages: tuple[Stage, ...]
    required_artifacts: tuple[str, ...]
    uri_artifacts: tuple[str, ...]
    replaced_artifacts: tuple[str, ...] = ()

    @property
    def output_artifacts(self) -> tuple[str, ...]:
        """Artifacts that the chosen stages make."""
        return tuple(name for stage in self.stages for name in stage.outputs)

    def after(self, stage: Stage) -> tuple[Stage, ...]:
        """Return the stages that follow ``stage``, and run only when its gate opens."""
        return self.stages[self.stages.index(stage) + 1 :]


def make_plan(
    start: str = NAMES[0], end: str = NAMES[-1], *, extra: Iterable[str] = (), without: Iterable[str] = ()
) -> Plan:
    """Plan the stages from ``start`` to ``end``.

    Args:
        extra: optional artifacts that the user gives as well.
        without: artifacts that a setting stands in for.

    Raises InputError for unknown or reversed stages, and for an artifact that no chosen stage takes, or can do without.
    """
    first, last = STAGES.index(by_name(start)), STAGES.index(by_name(end))
    if first > last:
        raise InputError(f"--from {start} comes after --to {end}: the order is {', '.join(NAMES)}")
    stages = STAGES[first : last + 1]
    outputs: set[str] = set()
    required: dict[str, None] = {}
    by_uri: dict[str, None] = {}
    extra = tuple(extra)
    for stage in stages:
        inputs = stage.inputs + tuple(name for name in stage.optional_inputs if name in extra)
        required |= dict.fromkeys(name for name in inputs if name not in outputs)
        by_uri |= dict.fromkeys(name for name in stage.by_uri if name not in outputs)
        outputs |= set(stage.outputs)
    for name in extra:
        if name not in required:
            raise InputError(f"none of the stages {start} to {end} takes '{name}' from outside: leave it out")
    replaceable = {name for stage in stages for name in stage.replaced_by if name in required}
    without = tuple(without)
    for name in without:
        if name not in replaceable:
            raise InputError(f"none of the stages {start} to {end} can do without '{name}'")
    return Plan(
        stages,
        tuple(name for name in required if name not in without),
        tuple(name for name in by_uri if name not in required),
        without,
    )


def resolve_settings(stages: Iterable[Stage], *, profile_name: str, values: Mapping[str, Any]) -> dict[str, Settings]:
    """Return the settings of each stage: its defaults, then the profile's values, then ``values``.

    A key of ``values`` is ``stage.setting``, or a setting's name alone, meant for every stage that has it.
    Raises InputError for unknown names, values of the wrong type, stages that are not chosen, and a name alone that
    is two different settings of the chosen stages.
    """
    stages = tuple(stages)
    chosen = {stage.name for stage in stages}
    for key in values:
        _check_key(key, chosen)
    base = profile(profile_name)
    return {
        stage.name: load(stage.config, values_for(stage, base) | values_for(stage, values), stage=stage.name)
        for stage in stages
    }


def values_for(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``values`` that are meant for ``stage``, by the setting's name; ``stage.setting`` wins."""
    plain = {key: value for key, value in values.items() if key in stage.config.model_fields}
    prefix = f"{stage.name}."
    return plain | {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def find_setting(key: str) -> tuple[Stage, str]:
    """Return a stage that has the setting which ``key`` names, and the setting's name.

    Raises InputError when there is none.
    """
    stage_name, dot, name = key.rpartition(".")
    stages = (by_name(stage_name),) if dot else STAGES
    for stage in stages:
        if name in stage.config.model_fields:
            return stage, name
    names = sorted({field for stage in stages for field in stage.config.model_fields})
    close = difflib.get_close_matches(name, names, n=1)
    where = stage_name if dot else "any stage"
    raise InputError(f"there is no setting '{name}' in {where}" + (f": did you mean '{close[0]}'?" if close else ""))


def _check_key(key: str, chosen: set[str]) -> None:
    stage, name = find_setting(key)
    if "." in key:
        if stage.name not in chosen:
            raise InputError(
                f"{key}: the stage {stage.name} is not among the chosen ones ({', '.join(sorted(chosen))})"
            )
        return
    owners = {s.name: s.config.model_fields[name] for s in STAGES if name in s.config.model_fields}
    meanings = {owner: (field.annotation, field.default) for owner, field in owners.items() if owner in chosen}
    if not meanings:
        raise InputError(f"{key} is a setting of {', '.join(sorted(owners))}, which is not among the chosen stages")
    if any(meaning != next(iter(meanings.values())) for meaning in meanings.values()):
        choices = " or ".join(f"{owner}.{name}" for owner in meanings)
        raise InputError(f"{key} means something else in each of {', '.join(meanings)}: write {choices}")


def form_settings(stages: Iterable[Stage]) -> dict[str, FieldInfo]:
    """Return the settings in the run form of a pipeline of ``stages``; a name shared by stages appears once."""
    fields: dict[str, FieldInfo] = {}
    for stage in stages:
        for name, field in stage.config.model_fields.items():
            if is_in_form(field):
                fields.setdefault(name, field)
    return fields


def pipeline_name(plan: Plan) -> str:
    """Return ``nemotron-embed`` for the whole recipe, ``nemotron-embed-from-STAGE`` for a later start."""
    start, end = plan.stages[0].name, plan.stages[-1].name
    name = "nemotron-embed" if start == NAMES[0] else f"nemotron-embed-from-{start}"
    return name if end == NAMES[-1] else f"{name}-to-{end}"
