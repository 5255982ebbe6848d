"""Runs on this machine: one stage, or stages one after the other, each in a process of its own."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.command_line.summary import summarize
from components.core.artifacts import ARTIFACTS
from components.core.errors import InputError
from components.core.runner import Source, check_input, execute, is_sealed
from components.core.settings import Settings, fill_in_work_directories
from components.core.stage import Stage
from components.recipe.plan import Plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRun:
    """One stage with its settings; ``input_paths`` are the paths of inputs that are not in ``work``."""

    stage: Stage
    config: Settings
    work: Path
    input_paths: Mapping[str, Path]

    def inputs(self) -> dict[str, Source]:
        """Return the path of each input; of optional ones only those that were given or are in ``work``."""
        names = tuple(
            n for n in self.stage.inputs if n in self.stage.needed_inputs(self.config) or n in self.input_paths
        )
        names += tuple(n for n in self.stage.optional_inputs if self._exists(n))
        return {name: Source(path := self._input_path(name), sealed=is_sealed(path)) for name in names}

    def outputs(self) -> dict[str, Path]:
        """Return the path of each output."""
        return {name: artifact_path(self.work, name) for name in self.stage.outputs}

    def uris(self) -> dict[str, str]:
        """Return the paths of inputs and outputs as their URIs; that of an input that does not exist is empty."""
        paths = {name: self._input_path(name) for name in self.stage.inputs + self.stage.by_uri}
        uris = {name: str(path.resolve()) if path.exists() else "" for name, path in paths.items()}
        return uris | {name: str(path.resolve()) for name, path in self.outputs().items()}

    def show(self) -> None:
        """Print the resolved settings, inputs and outputs, and what the run would do and cost where that is known.

        Raises InputError when there is nothing at a path in ``input_paths``; inputs in ``work`` may be made later.
        """
        print(f"{self.stage.name}: {self.stage.summary}")
        for title, values in (("inputs", {n: s.path for n, s in self.inputs().items()}), ("outputs", self.outputs())):
            print(f"  {title}:")
            for name, path in values.items():
                print(f"    {name}: {path}" + ("" if title == "outputs" or path.exists() else "  (not there yet)"))
        print("  settings:")
        config = fill_in_work_directories(self.config, self.work)
        for line in yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).splitlines():
            print(f"    {line}")
        if self.stage.previews and all(source.path.exists() for source in self.inputs().values()):
            for name, source in self.inputs().items():
                check_input(name, source)
            text = self.stage.preview()(self.config, **{n: s.path for n, s in self.inputs().items()})
            print("  preview:", *text.splitlines(), sep="\n    ")
        for name, path in self.input_paths.items():
            if not path.exists():
                raise _missing_input(name, path)

    def show_sample(self) -> None:
        """Print what the stage makes of the first of its inputs; nothing is written."""
        for name, source in self.inputs().items():
            check_input(name, source)
        print(self.stage.sample()(self.config, **{name: source.path for name, source in self.inputs().items()}))

    def execute(self) -> None:
        """Run the stage here; its figures go to ``work/<stage>_metrics.json``."""
        for name in self.stage.by_uri:
            if self._exists(name):
                check_input(name, Source(path := self._input_path(name), sealed=is_sealed(path)))
        config = fill_in_work_directories(self.config, self.work)
        outcome = execute(self.stage, config, inputs=self.inputs(), outputs=self.outputs(), uris=self.uris())
        body = json.dumps({"metrics": outcome.metrics, "results": outcome.results}, indent=2)
        metrics_path(self.work, self.stage).write_text(body + "\n", encoding="utf-8")

    def _exists(self, name: str) -> bool:
        return name in self.input_paths or artifact_path(self.work, name).exists()

    def _input_path(self, name: str) -> Path:
        return self.input_paths.get(name, artifact_path(self.work, name))


@dataclass(frozen=True)
class Run:
    """The stages of ``plan`` one after the other; artifacts lie in ``work``."""

    plan: Plan
    configs: Mapping[str, Settings]
    work: Path
    input_paths: Mapping[str, Path]

    def show(self) -> None:
        """Print what each stage would read, make and use. Raises InputError for what ``execute`` would refuse."""
        for stage in self.plan.stages:
            self._stage_run(stage).show()
        self._check()

    def execute(self) -> int:
        """Run every stage in its own process; return the exit code of the first that fails.

        When a stage's gate closes, the stages after it are not run and the code is 0: a corpus without news, or a
        model that is no better, is no error. The summary says so.
        """
        self._check()
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.work} cannot be written ({error.strerror}): choose another directory") from None
        for stage in self.plan.stages:
            code = self._run_process(stage)
            if code:
                print(
                    f"error: {stage.name} failed with exit code {code}; the stages after it were not run",
                    file=sys.stderr,
                )
                return code
            gate = stage.gate
            is_closed = gate is not None and not self._result(stage.name, gate.result)
            if stage == self.plan.stages[0] and not (is_closed and gate and gate.keeps):
                # Outputs of an earlier run do not belong to what the first stage has just made.
                self._remove_outputs(self.plan.stages[1:])
            if gate and is_closed and self.plan.after(stage):
                names = ", ".join(other.name for other in self.plan.after(stage))
                _log.info("%s: %s is false: %s not run", stage.name, gate.result, names)
                break
        print(summarize(self.work, self.plan))
        return 0

    def _check(self) -> None:
        """Raise InputError before the first stage when something the user must bring is missing."""
        needed = {name for stage in self.plan.stages for name in stage.needed_inputs(self.configs[stage.name])}
        replaced = {name for stage in self.plan.stages for name in stage.replaced_by} - needed - set(self.input_paths)
        for name in self.plan.required_artifacts + self.plan.uri_artifacts:
            if name in replaced:
                continue
            path = self.input_paths.get(name, artifact_path(self.work, name))
            if not path.exists() and (name in self.plan.required_artifacts or name in self.input_paths):
                raise _missing_input(name, path)
        unused = set(self.input_paths) - set(self.plan.required_artifacts) - set(self.plan.uri_artifacts)
        for name in sorted(unused):
            raise InputError(f"--{name.replace('_', '-')}: the chosen stages make {name} themselves: leave it out")
        for stage in self.plan.stages:
            if stage.check_on_this_machine:
                stage.check_on_this_machine(self.configs[stage.name])

    def _remove_outputs(self, stages: Iterable[Stage]) -> None:
        for stage in stages:
            for path in (*self._stage_run(stage).outputs().values(), metrics_path(self.work, stage)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _stage_run(self, stage: Stage) -> StageRun:
        names = stage.inputs + stage.optional_inputs + stage.by_uri
        paths = {name: path for name, path in self.input_paths.items() if name in names}
        return StageRun(stage, self.configs[stage.name], self.work, paths)

    def _run_process(self, stage: Stage) -> int:
        run = self._stage_run(stage)
        argv = [sys.executable, "-m", "components", stage.name, "--work", str(self.work)]
        for name, path in run.input_paths.items():
            argv += [f"--{name.replace('_', '-')}", str(path)]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            yaml.safe_dump(run.config.model_dump(mode="json"), config)
            config.flush()
            return subprocess.run([*argv, "--config", config.name], check=False).returncode

    def _result(self, stage: str, name: str) -> Any:
        return json.loads((self.work / f"{stage}_metrics.json").read_text(encoding="utf-8"))["results"][name]


def _missing_input(name: str, path: Path) -> InputError:
    return InputError(f"{name}: there is nothing at {path}: give its path with --{name.replace('_', '-')}")


def artifact_path(work: Path, name: str) -> Path:
    """Return the path of the artifact ``name`` in ``work``."""
    return work / (f"{name}.html" if ARTIFACTS[name].kfp_type == "HTML" else name)


def metrics_path(work: Path, stage: Stage) -> Path:
    """Return the path of the figures of ``stage`` in ``work``."""
    return work / f"{stage.metrics_artifact}.json"
