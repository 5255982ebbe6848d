"""Runs compiled pipelines without a container engine: kfp's own Docker runner, with commands started on this host.

kfp executes the shipped YAML: it resolves placeholders, conditions and outputs as it does with containers. Only the
four calls of the ``docker`` package that it makes are replaced.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.forked import ForkedCommand


@dataclass
class Task:
    """A container that was started; ``output`` and ``code`` are there once it has ended."""

    stage: str
    image: str
    output: str = ""
    code: int | None = None


class DockerClient:
    """Stands for the ``docker`` package's client: what kfp asks of it beside ``_run``, which starts a task."""

    _run: Callable[..., Any]

    @property
    def images(self) -> Any:
        return types.SimpleNamespace(list=lambda: [], pull=lambda image: None)

    @property
    def containers(self) -> Any:
        return types.SimpleNamespace(run=self._run)

    def info(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@dataclass
class Host(DockerClient):
    """Starts tasks on this host; remembers what it was asked to run."""

    environment: dict[str, str]
    tasks: list[Task] = field(default_factory=list)

    def _run(self, image: str, command: list[str], environment: dict[str, str] | None = None, **_: Any) -> _Container:
        assert command[:3] == ["python", "-m", "components"], command
        task = Task(command[3], image)
        self.tasks.append(task)
        return _Container(task, ForkedCommand(command[3:], {**self.environment, **(environment or {})}))


@dataclass
class _Container:
    task: Task
    command: ForkedCommand

    def logs(self, stream: bool) -> Iterator[bytes]:
        self.task.code, output, errors = self.command.wait()
        self.task.output = output + errors
        yield self.task.output.encode()

    def wait(self) -> dict[str, int]:
        assert self.task.code is not None
        return {"StatusCode": self.task.code}


@contextmanager
def host(pipeline_root: Path) -> Iterator[Host]:
    """Within it, calling a loaded pipeline runs it here; artifacts lie under ``pipeline_root``."""
    # Of the caller's environment only what a container would have, too: nothing may depend on a developer's keys.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    runner = Host({**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    with running_on(runner, pipeline_root):
        yield runner


@contextmanager
def running_on(runner: Any, pipeline_root: Path) -> Iterator[None]:
    """Within it, kfp's Docker runner takes ``runner`` for the ``docker`` package's client."""
    docker, errors = types.ModuleType("docker"), types.ModuleType("docker.errors")
    docker.errors, docker.from_env, docker.DockerClient = errors, lambda: runner, type(runner)
    errors.NotFound = LookupError
    with patch.dict(sys.modules, {"docker": docker, "docker.errors": errors}):
        # kfp's Docker runner imports the package when it is imported itself.
        from kfp import local  # noqa: PLC0415
        from kfp.local import docker_task_handler, task_dispatcher  # noqa: PLC0415
        from kfp.local.orchestrator import task_executor  # noqa: PLC0415
        from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator  # noqa: PLC0415

        with (
            patch.object(ConditionEvaluator, "_resolve_pipeline_channel", _output_named_in_a_condition),
            patch.object(docker_task_handler, "docker", docker),
            patch.object(task_dispatcher, "docker_task_handler", docker_task_handler),
            patch.object(task_dispatcher, "_DOCKER_AVAILABLE", True),
            # The second try of a failed stage need not wait for anything to pass.
            patch.object(task_executor, "time", types.SimpleNamespace(sleep=lambda seconds: None)),
        ):
            local.init(local.DockerRunner(), pipeline_root=str(pipeline_root), raise_on_error=True)
            yield


def _output_named_in_a_condition(reference: str, outputs: Any) -> Any:
    """kfp 2.17 finds outputs for local conditions only when their name is ``Output``."""
    task, _, output = reference.removeprefix("pipelinechannel--").rpartition("-")
    return outputs.get_task_output(task, output)
