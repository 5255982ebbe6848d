"""Real servers of real exports: first deployment, repetition, replacement, refusal, roll-back, stop."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from components.core.artifacts import seal
from components.core.errors import ActionNeeded, InputError, Transient
from components.core.serving.model_manifest import compute_digest, hash_files
from components.deploy.component import DeployConfig
from components.deploy.local.__main__ import main as local_command
from components.deploy.local.process import ServerProcess, find_free_port, is_port_free
from components.deploy.local.releases_on_disk import ServiceState, StateDirectory, stop_service
from components.deploy.program import run
from components.deploy.targets import local
from components.deploy.verification.checks import Check
from components.deploy.verify import main as verify_command
from tests.exported import Exported
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

NAME = "test/model"


@pytest.fixture
def config(tmp_path: Path) -> Iterator[DeployConfig]:
    """A service of its own; whatever runs under it at the end is stopped."""
    made = DeployConfig(
        target="local",
        served_model_name=NAME,
        host_port=find_free_port("127.0.0.1"),
        state_dir=str(tmp_path / "state"),
        health_check_timeout=LIMIT_SECONDS,
    )
    yield made
    stop_service(made.state_dir, NAME)


def deploy(config: DeployConfig, exported: Exported, out: Path, **changes: Any) -> dict[str, Any]:
    if out.exists():
        shutil.rmtree(out)
    places = {
        "deploy_bundle": exported.bundle,
        "exported_model_uri": str(exported.model),
        "checkpoint_uri": "",
    } | changes
    run(config, deployment=out, **places)
    return json.loads((out / "deployment.json").read_text())


def served(url: str, text: str) -> np.ndarray:
    body = {"model": NAME, "input": [text], "input_type": "query"}
    answer = httpx.post(f"{url}/v1/embeddings", json=body, timeout=LIMIT_SECONDS).raise_for_status()
    return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)


def exists(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_deploy_repeat_replace_stop(
    config: DeployConfig, minilm: Exported, llama: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = deploy(config, minilm, tmp_path / "out", exported_model_uri=minilm.model.as_uri())
    assert first["endpoint"] == f"http://127.0.0.1:{config.host_port}"
    expected = SentenceTransformer(str(minilm.checkpoint), device="cpu").encode("open a file")
    np.testing.assert_allclose(served(first["endpoint"], "open a file"), expected, atol=1e-5)
    verification = json.loads((tmp_path / "out/verification.json").read_text())
    undecided = {check["name"] for check in verification["checks"] if check["passed"] is None}
    assert undecided == {"long texts", "latency"}
    assert [check["passed"] for check in verification["checks"]].count(True) == 17
    assert set(verification["checks"][0]) == {"name", "passed", "figures", "limit"}

    again = deploy(config, minilm, tmp_path / "out")
    assert again["process"] == first["process"]

    second = deploy(config, llama, tmp_path / "out")
    assert second["endpoint"] == first["endpoint"]
    assert served(second["endpoint"], "open a file").shape == (64,)
    assert not exists(first["process"]["pid"])
    releases = {path.name for path in (Path(config.state_dir) / "test%2Fmodel/releases").iterdir()}
    assert releases == {first["digest"][:12], second["digest"][:12]}

    command = ["--name", NAME, "--state-dir", config.state_dir]
    assert local_command(["status", *command]) == 0
    assert second["endpoint"] in capsys.readouterr().out
    assert local_command(["stop", *command]) == 0
    assert not exists(second["process"]["pid"])
    assert local_command(["status", *command]) == 3
    assert local_command(["stop", *command]) == 0
    with pytest.raises(httpx.ConnectError):
        served(second["endpoint"], "open a file")


def test_what_fails_leaves_the_service_as_it_was(config: DeployConfig, llama: Exported, tmp_path: Path) -> None:
    running = deploy(config, llama, tmp_path / "out")
    before = served(running["endpoint"], "fit the valve")

    wrong_model = _copy_bundle(llama, tmp_path / "swapped")
    vectors = load_file(wrong_model / "reference_vectors.safetensors")
    swapped = {"tuned": vectors["base"], "base": vectors["tuned"]}
    save_file(swapped, wrong_model / "reference_vectors.safetensors")
    _stop_being_idempotent(config)
    with pytest.raises(ActionNeeded, match=r"cosine to fine-tuned mean 0.*fine-tuned, not base"):
        deploy(config, llama, tmp_path / "out", deploy_bundle=wrong_model)

    broken = _broken_release(llama, tmp_path / "broken")
    # Noticed at once: a server that is waited for until health_check_timeout gets another message.
    with pytest.raises(ActionNeeded, match=r"the server ended before it was ready: error: .*onnx"):
        deploy(config, broken, tmp_path / "out")

    flipped = tmp_path / "flipped"
    shutil.copytree(llama.model, flipped)
    data = bytearray((flipped / "onnx/model.onnx.data").read_bytes())
    data[1000] ^= 1
    (flipped / "onnx/model.onnx.data").write_bytes(data)
    shutil.rmtree(StateDirectory(config.state_dir, NAME).get_release_directory(running["digest"]))
    with pytest.raises(InputError, match=r"onnx/model.onnx.data does not have the sha256"):
        deploy(config, llama, tmp_path / "out", exported_model_uri=str(flipped))

    with pytest.raises(InputError, match="give the two that one export made"):
        deploy(config, llama, tmp_path / "out", exported_model_uri=str(broken.model))

    assert exists(running["process"]["pid"])
    np.testing.assert_array_equal(served(running["endpoint"], "fit the valve"), before)
    assert not (tmp_path / "out").exists()
    assert len(_servers(config)) == 1


def test_a_failed_switch_is_rolled_back(
    config: DeployConfig, llama: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The candidate passes, the service that replaces it does not."""
    running = deploy(config, llama, tmp_path / "out")
    genuine = local.verify_endpoint

    def failing(endpoint: Any, bundle: Any, wanted: Any, *, brief: bool = False) -> list[Check]:
        fault = [Check("told to fail", False, {"reason": "test"}, "")]
        return fault if brief else genuine(endpoint, bundle, wanted)

    monkeypatch.setattr(local, "verify_endpoint", failing)
    with pytest.raises(ActionNeeded, match="told to fail"):
        deploy(config, _same_model_again(llama, tmp_path / "again"), tmp_path / "out")
    assert served(running["endpoint"], "fit the valve").shape == (64,)
    state = StateDirectory(config.state_dir, NAME).read()
    assert state.live is not None and state.live.digest == running["digest"]
    assert (state.previous, state.candidate) == (None, None)
    assert len(_servers(config)) == 1


def test_a_killed_service_and_a_deployment_cut_short_are_made_good(
    config: DeployConfig, llama: Exported, tmp_path: Path
) -> None:
    running = deploy(config, llama, tmp_path / "out")
    home = StateDirectory(config.state_dir, NAME)
    state = home.read()
    assert state.live is not None
    os.kill(state.live.pid, signal.SIGKILL)
    # Its threads go one after the other, and the port with the last.
    wait_for(lambda: is_port_free("127.0.0.1", config.host_port))
    # As left by a deployment killed after it stopped the old server and before the new one was there.
    home.write(ServiceState(live=state.live, previous=state.live, good=state.good))
    broken = _broken_release(llama, tmp_path / "broken")
    with pytest.raises(ActionNeeded):
        deploy(config, broken, tmp_path / "out")
    assert served(running["endpoint"], "fit the valve").shape == (64,)
    assert len(_servers(config)) == 1


def test_a_taken_port_is_named_before_anything_else(config: DeployConfig, llama: Exported, tmp_path: Path) -> None:
    message = f"port {config.host_port} is taken by another process"
    with socket.create_server(("127.0.0.1", config.host_port)), pytest.raises(InputError, match=message):
        deploy(config, llama, tmp_path / "out")
    assert not (StateDirectory(config.state_dir, NAME).path / "releases").exists()


def test_a_process_that_is_not_our_server_is_never_ended(config: DeployConfig) -> None:
    """Its id is that of a server which ended; ids are used again."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as other:
        home = StateDirectory(config.state_dir, NAME)
        with home.lock():
            service = ServerProcess(
                pid=other.pid, started="then", name=NAME, digest="0" * 64, host="127.0.0.1", port=1, log="none"
            )
            home.write(ServiceState(live=service, candidate=service))
        assert stop_service(config.state_dir, NAME) is False
        assert other.poll() is None
        other.kill()


def test_two_deployments_of_one_service_do_not_mix(config: DeployConfig, llama: Exported, tmp_path: Path) -> None:
    held = StateDirectory(config.state_dir, NAME).lock()
    with held, pytest.raises(Transient, match="another deployment is under way"):
        deploy(config, llama, tmp_path / "out")


@pytest.mark.parametrize(
    ("uri", "message"), [("s3://models/one", "only a directory of this machine"), ("/no/such/model", "no directory")]
)
def test_other_places_are_refused(
    config: DeployConfig, llama: Exported, tmp_path: Path, uri: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        deploy(config, llama, tmp_path / "out", exported_model_uri=uri)


def test_in_the_foreground_it_serves_until_it_is_told_to_stop(
    config: DeployConfig, llama: Exported, tmp_path: Path
) -> None:
    given = config.model_dump(include={"target", "served_model_name", "host_port", "state_dir", "health_check_timeout"})
    settings = [f"{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "components", "deploy", "--work", str(tmp_path), "detach=false", *settings]
    _seal(llama, tmp_path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " is served at " in line:
                break
        assert " is served at " in lines[-1], lines
        assert served(f"http://127.0.0.1:{config.host_port}", "fit the valve").shape == (64,)
        process.terminate()
        process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0
    assert (tmp_path / "deployment/verification.json").is_file()
    assert _servers(config) == []


def _stop_being_idempotent(config: DeployConfig) -> None:
    """Let the next deployment see the running release as one of another version of this program."""
    home = StateDirectory(config.state_dir, NAME)
    state = home.read()
    assert state.live is not None
    home.write(state.model_copy(update={"live": state.live.model_copy(update={"version": "0"})}))


def test_minilm_from_its_export_to_its_service_and_a_broken_one_that_is_refused(
    config: DeployConfig, minilm: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real model, every step: exported, served, proven, promoted; the next one has some other weights."""
    running = deploy(config, minilm, tmp_path / "out")
    assert running["reindex_required"] is True
    command = ["--url", running["endpoint"], "--model", NAME, "--bundle", str(minilm.bundle)]
    assert verify_command(command) == 0
    assert "0 failed" in capsys.readouterr().out
    before = served(running["endpoint"], "fit the valve")

    with pytest.raises(ActionNeeded, match=r"cosine to fine-tuned mean 0\.[0-9]+.*neighbours"):
        deploy(config, _other_weights(minilm, tmp_path / "broken"), tmp_path / "out")
    np.testing.assert_array_equal(served(running["endpoint"], "fit the valve"), before)
    assert verify_command(command) == 0
    assert exists(running["process"]["pid"])
    assert len(_servers(config)) == 1


def _other_weights(exported: Exported, directory: Path) -> Exported:
    """Whole by its manifest, and a graph that runs: one of its matrices is of another model."""
    graph = onnx.load(exported.model / "onnx/model.onnx")
    matrices = [tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) >= 384]
    first = matrices[0]
    values = numpy_helper.to_array(first)
    first.CopyFrom(numpy_helper.from_array(values[::-1].copy(), first.name))
    return _another_release(exported, directory, "onnx/model.onnx", graph.SerializeToString())


def _copy_bundle(exported: Exported, directory: Path) -> Path:
    shutil.copytree(exported.bundle, directory)
    return directory


def _broken_release(llama: Exported, directory: Path) -> Exported:
    """Whole by its manifest, but no ONNX model: the server cannot load it."""
    return _another_release(llama, directory, "onnx/model.onnx", b"not a graph")


def _same_model_again(llama: Exported, directory: Path) -> Exported:
    """Another digest, the same vectors."""
    settings = (llama.model / "encoder.json").read_bytes()
    return _another_release(llama, directory, "encoder.json", settings + b"\n")


def _another_release(exported: Exported, directory: Path, changed: str, content: bytes) -> Exported:
    for name in ("model", "bundle"):
        shutil.copytree(getattr(exported, name), directory / name)
    (directory / "model" / changed).write_bytes(content)
    manifest = _manifest_again(directory / "model")
    for name in ("model", "bundle"):
        (directory / name / "model-manifest.json").write_text(json.dumps(manifest))
    return dataclasses.replace(exported, model=directory / "model", bundle=directory / "bundle")


def _manifest_again(model: Path) -> dict[str, Any]:
    manifest = json.loads((model / "model-manifest.json").read_text())
    files = hash_files(model, list(manifest["files"]))
    return manifest | {"files": {n: f.model_dump() for n, f in files.items()}, "digest": compute_digest(files)}


def _seal(exported: Exported, work: Path) -> None:
    for source, kind in ((exported.model, "exported_model"), (exported.bundle, "deploy_bundle")):
        shutil.copytree(source, work / kind)
        seal(work / kind, kind)


def _servers(config: DeployConfig) -> list[int]:
    """Processes that serve from this test's state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "components.server" in words and any(word.startswith(config.state_dir) for word in words):
            found.append(int(path.parent.name))
    return found
