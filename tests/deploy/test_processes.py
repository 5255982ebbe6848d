"""Real processes: the project's own server as the rendered objects start it, and deployments that are ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.core.artifacts import seal
from components.core.serving.bundle import read_bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.backends.contracts import MODEL_PATH, PORT
from components.deploy.local.process import find_free_port
from components.deploy.publishing.publish import ModelUris
from components.deploy.targets import kserve
from components.deploy.verification.verify_endpoint import list_failures
from tests.deploy.cluster.kserve import NEVER, Fate
from tests.deploy.conftest import Team
from tests.exported import Exported
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


class Container:
    """The container of a ServingRuntime as a process of this machine, with ``model`` for the mounted volume."""

    name = "team/embed"

    def __init__(self, runtime: dict[str, Any], model: Path) -> None:
        (container,) = runtime["spec"]["containers"]
        port = find_free_port("127.0.0.1")
        swapped = {MODEL_PATH: str(model), str(PORT): str(port), "0.0.0.0": "127.0.0.1"}
        arguments = [swapped.get(argument, argument) for argument in container["args"]]
        # The entry point of images/server.
        self.process = subprocess.Popen([sys.executable, "-m", "components.server", *arguments], cwd=ROOT)
        self.url = f"http://127.0.0.1:{port}"
        paths = [container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")]
        with httpx.Client(trust_env=False) as client:
            for path in paths:
                wait_for(lambda path=path: self._is_ok(client, path), self.process)

    def _is_ok(self, client: httpx.Client, path: str) -> bool:
        try:
            return client.get(f"{self.url}{path}").is_success
        except httpx.HTTPError:
            return False

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        with httpx.Client(trust_env=False, timeout=LIMIT_SECONDS) as client:
            answer = client.post(f"{self.url}{path}", json=request)
        return answer.status_code, answer.json()


@pytest.fixture
def containers(team: Team, llama: Exported) -> Iterator[dict[str, Container]]:
    """Started when a Service first leads to them."""
    started: dict[str, Container] = {}

    def serves(service: dict[str, Any]) -> Container:
        name = service["metadata"]["name"]
        if name not in started:
            started[name] = Container(team.cluster.store.objects["servingruntimes", name], llama.model)
        return started[name]

    team.cluster.serves = serves
    yield started
    for container in started.values():
        container.process.kill()
        container.process.wait(timeout=LIMIT_SECONDS)


def test_the_projects_own_server_as_it_is_rendered(
    team: Team, containers: dict[str, Container], llama: Exported
) -> None:
    """An exported model, the server's arguments and probes, and the checkpoint's own vectors, all of them real."""
    config = team.config(backend="onnx", serving_image="registry.example.com/server:1", soak_seconds=0)
    deployed = kserve.deploy(config, read_bundle(llama.bundle), ModelUris("s3://models/llama"))
    # No probe is long, and nothing says how fast the service should be.
    assert {check.name for check in deployed.checks if check.passed is None} == {"long texts", "latency"}
    assert [check.passed for check in deployed.checks if check.passed is not None] == [True] * 17
    assert list_failures(deployed.live_checks) == []
    with EmbeddingClient(deployed.endpoint, "team/embed") as endpoint:
        assert endpoint.embed(["how do I fit a valve"], "query").shape == (1, 64)
    assert len(containers) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_deployment_that_is_ended(team: Team, tmp_path: Path, how: signal.Signals) -> None:
    """As when a run is cancelled, and as when its node dies, while the candidate starts."""
    team.deploy("a")
    before = team.releases()
    team.fate("b", Fate(NEVER))
    work = tmp_path / "work"
    for kind in ("deploy_bundle", "exported_model"):
        shutil.copytree(team.bundles["b"], work / kind)
        seal(work / kind, kind)
    settings = team.config(model_uri="s3://models/b", rollout_timeout=2 * LIMIT_SECONDS).model_dump(exclude_unset=True)
    command = [sys.executable, "-m", "components", "deploy", "--work", str(work)]
    command += [f"{name}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ}, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(team.releases()) == 2, process)
        wait_for(lambda: team.cluster.controller.ages[_candidate(team, before)] > 2, process)
        process.send_signal(how)
        _, said = process.communicate(timeout=LIMIT_SECONDS)
    assert team.live() == "a"
    store = team.cluster.store
    if how is signal.SIGTERM:
        assert process.returncode == 75
        assert "error: interrupted: run the same command again" in said
        assert team.releases() == before
        assert store.objects["leases", "embed-deploy"]["spec"]["holderIdentity"] == ""
    else:
        assert len(team.releases()) == 2
        # Half a minute passes.
        store.objects["leases", "embed-deploy"]["spec"]["leaseDurationSeconds"] = 1
    team.fate("b", Fate())
    team.deploy("c")
    assert team.live() == "c"
    assert len(team.releases()) == 2
    assert not (work / "deployment").exists()


def _candidate(team: Team, before: list[str]) -> str:
    (name,) = set(team.releases()) - set(before)
    return name
