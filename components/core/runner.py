"""Runs one stage: check its inputs, run its program, seal its outputs, and only then publish them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import __version__
from components.core.artifacts import ARTIFACTS, MANIFEST, seal, verify
from components.core.errors import InputError, StageError
from components.core.history import read_run_context
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
    """The metrics and output parameters of a stage, and the manifest digest of each directory that it made."""

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
    input_digests = {name: check_input(name, source) for name, source in inputs.items()}
    _log.info("%s ...", stage.summary)
    _log.debug("settings %s", json.dumps(config.model_dump(mode="json"), sort_keys=True))
    staging = {name: _clear(outputs[name].with_name(outputs[name].name + ".partial")) for name in stage.outputs}
    started = time.monotonic()
    try:
        with fetch_champion_artifacts(stage, inputs) as fetched:
            paths = {name: source.path for name, source in inputs.items()} | fetched
            returned = stage.program()(
                config,
                **paths,
                **{name: None for name in stage.inputs + stage.optional_inputs if name not in paths},
                **{f"{name}_uri": uris[name] for name in stage.by_uri},
                **staging,
            )
        results = _collect_results(stage, returned, uris)
        nothing_new = stage.gate is not None and stage.gate.keeps and not results[stage.gate.result]
        digests = _publish(stage, config, staging, outputs, input_digests, outputs_optional=nothing_new)
    except MemoryError:
        raise StageError(f"{stage.name}: out of memory: give the node more memory or lower the batch size") from None
    finally:
        for path in staging.values():
            _remove(path)
    outcome = Outcome(_collect_metrics(returned, seconds=time.monotonic() - started), results, digests)
    _log.debug("metrics %s", json.dumps(outcome.metrics, sort_keys=True))
    _log.info("%s", _describe_end(stage, outcome.metrics))
    return outcome


def _describe_end(stage: Stage, metrics: Mapping[str, float | int | bool | str]) -> str:
    """Return the line that ends a stage: how long it took, and the metrics of its headline."""
    figures = [f"{name.replace('_', ' ')} {_format(metrics[name])}" for name in stage.headline if name in metrics]
    return f"done in {metrics['seconds']:.0f} s" + (f": {', '.join(figures)}" if figures else "")


def _format(value: float | int | bool | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _or_setting(stage: Stage, name: str) -> str:
    return f", or set {stage.replaced_by[name]}" if name in stage.replaced_by else ""


def check_input(name: str, source: Source) -> str | None:
    """Return the manifest digest of an input, None when it has no manifest.

    Raises InputError unless the artifact is there and complete.
    """
    if ARTIFACTS[name].is_file:
        if not source.path.is_file():
            raise InputError(f"{name}: there is no file {source.path}: give its path")
        return None
    if not source.path.is_dir():
        raise InputError(f"{name}: there is no directory {source.path}: give the directory of the {name} artifact")
    return verify(source.path, name, sealed=source.sealed)


@contextlib.contextmanager
def fetch_champion_artifacts(stage: Stage, inputs: Mapping[str, Source]) -> Iterator[dict[str, Path]]:
    """Fetch the ``from_champion`` inputs of ``stage`` that are not given, for the time of the block.

    Yields the directory of each by name of the input; there are none without a champion in ``past_runs``. Raises
    ActionNeeded when the history does not hold a complete artifact.
    """
    missing = {name: kind for name, kind in stage.from_champion.items() if name not in inputs}
    context = read_run_context(inputs["past_runs"].path) if missing and "past_runs" in inputs else None
    if context is None or context.champion is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: Path(directory) / kind for name, kind in missing.items()}
        for name, kind in missing.items():
            context.history.fetch_artifact(context.champion, kind, paths[name])
        yield paths


def _clear(path: Path) -> Path:
    """Return ``path`` with nothing there. Raises InputError where nothing can be written."""
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
    input_digests: Mapping[str, str | None],
    *,
    outputs_optional: bool,
) -> dict[str, str]:
    """Seal the outputs in ``staging`` and move them to ``outputs``; return the digest of each directory."""
    digests = {}
    names = [name for name in stage.outputs if staging[name].exists() or not outputs_optional]
    for name in names:
        if not staging[name].exists():
            raise StageError(f"{stage.name} made no {name}: this is a bug")
        if not ARTIFACTS[name].is_file:
            digests[name] = seal(
                staging[name],
                name,
                stage=stage.name,
                version=__version__,
                settings=config.model_dump(mode="json"),
                inputs=dict(input_digests),
            )
    for name in names:
        _remove(outputs[name])
        staging[name].rename(outputs[name])
    return digests


def _collect_results(stage: Stage, returned: Mapping[str, Any], uris: Mapping[str, str]) -> dict[str, Any]:
    """Return the stage's output parameters."""
    results = {}
    for name, kind in stage.results.items():
        if name in returned:
            results[name] = kind(returned[name])
        elif name.removesuffix("_uri") in stage.outputs + stage.inputs:
            results[name] = uris[name.removesuffix("_uri")]
        else:
            raise StageError(f"{stage.name} returned no {name}: this is a bug")
    return results


def _collect_metrics(returned: Mapping[str, Any], *, seconds: float) -> dict[str, float | int | bool | str]:
    """Return what the comparison of runs can show: text, counts and finite figures."""
    return {
        name: value
        for name, value in {**returned, "seconds": round(seconds, 1)}.items()
        if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    }


def is_sealed(path: Path) -> bool:
    """Return whether a stage published this directory."""
    return (path / MANIFEST).is_file()
