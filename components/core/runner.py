"""Runs one stage: check what it reads, run its program, seal what it made, and only then publish it."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import __version__
from components.core.artifacts import ARTIFACTS, MANIFEST, seal, verify
from components.core.errors import InputError, StageError
from components.core.settings import Settings
from components.core.stage import Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where an input lies. ``sealed``: a stage made it, so it must carry a manifest."""

    path: Path
    sealed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a stage returned: its figures, output parameters, and the manifest digest of each directory it made."""

    metrics: dict[str, float | int | bool | str]
    results: dict[str, Any]
    digests: dict[str, str] = field(default_factory=dict)


def execute(
    stage: Stage,
    config: Settings,
    *,
    inputs: Mapping[str, Source],
    outputs: Mapping[str, Path],
    uris: Mapping[str, str],
) -> Outcome:
    """Run ``stage``; publish its outputs at ``outputs`` when it succeeded, leave nothing there when it failed.

    ``uris`` holds the URIs of artifacts that the stage takes by URI, of its inputs and of its outputs. A previous
    output at the same place is replaced only by a complete one; it stays when the stage has nothing new. Raises
    StageError for what the user can act on.
    """
    for name in stage.needed_inputs(config):
        if name not in inputs:
            raise InputError(f"{stage.name}: {name} is not given: name it" + _or_setting(stage, name))
    digests = {name: check_input(name, source) for name, source in inputs.items()}
    _log.info("settings %s", json.dumps(config.model_dump(mode="json"), sort_keys=True))
    staging = {name: _fresh(outputs[name].with_name(outputs[name].name + ".partial")) for name in stage.outputs}
    started = time.monotonic()
    try:
        returned = stage.program()(
            config,
            **{name: source.path for name, source in inputs.items()},
            **{name: None for name in stage.inputs + stage.optional_inputs if name not in inputs},
            **{f"{name}_uri": uris[name] for name in stage.by_uri},
            **staging,
        )
        results = _results(stage, returned, uris)
        nothing_new = stage.gate is not None and stage.gate.keeps and not results[stage.gate.result]
        made = _publish(stage, config, staging, outputs, digests, may_lack=nothing_new)
    except MemoryError:
        raise StageError(f"{stage.name}: out of memory: give the node more memory or lower the batch size") from None
    finally:
        for path in staging.values():
            _remove(path)
    outcome = Outcome(_metrics(returned, seconds=time.monotonic() - started), results, made)
    _log.info("metrics %s", json.dumps(outcome.metrics, sort_keys=True))
    return outcome


def _or_setting(stage: Stage, name: str) -> str:
    return f", or set {stage.replaced_by[name]}" if name in stage.replaced_by else ""


def check_input(name: str, source: Source) -> str | None:
    """Raise InputError unless the artifact is there and whole; return its manifest digest when it has one."""
    if ARTIFACTS[name].is_file:
        if not source.path.is_file():
            raise InputError(f"{name}: there is no file {source.path}: give its path")
        return None
    if not source.path.is_dir():
        raise InputError(f"{name}: there is no directory {source.path}: give the directory of the {name} artifact")
    return verify(source.path, name, sealed=source.sealed)


def _fresh(path: Path) -> Path:
    """``path`` with nothing there. Raises InputError where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written ({error.strerror}): choose another directory") from None
    return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _publish(
    stage: Stage,
    config: Settings,
    staging: Mapping[str, Path],
    outputs: Mapping[str, Path],
    inputs: Mapping[str, str | None],
    *,
    may_lack: bool,
) -> dict[str, str]:
    digests = {}
    made = [name for name in stage.outputs if staging[name].exists() or not may_lack]
    for name in made:
        if not staging[name].exists():
            raise StageError(f"{stage.name} made no {name}: this is a bug")
        if not ARTIFACTS[name].is_file:
            digests[name] = seal(
                staging[name],
                name,
                stage=stage.name,
                version=__version__,
                settings=config.model_dump(mode="json"),
                inputs=dict(inputs),
            )
    for name in made:
        _remove(outputs[name])
        staging[name].rename(outputs[name])
    return digests


def _results(stage: Stage, returned: Mapping[str, Any], uris: Mapping[str, str]) -> dict[str, Any]:
    """The stage's output parameters."""
    results = {}
    for name, kind in stage.results.items():
        if name in returned:
            results[name] = kind(returned[name])
        elif name.removesuffix("_uri") in stage.outputs + stage.inputs:
            results[name] = uris[name.removesuffix("_uri")]
        else:
            raise StageError(f"{stage.name} returned no {name}: this is a bug")
    return results


def _metrics(returned: Mapping[str, Any], *, seconds: float) -> dict[str, float | int | bool | str]:
    """What the comparison of runs can show: text, counts and finite figures."""
    return {
        name: value
        for name, value in {**returned, "seconds": round(seconds, 1)}.items()
        if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    }


def is_sealed(path: Path) -> bool:
    """Whether a stage published this directory."""
    return (path / MANIFEST).is_file()
