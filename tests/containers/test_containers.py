"""The compiled pipelines in their images: non-root, read-only root, no capability, no network but the stage's own.

Needs a container engine (DOCKER_HOST) and the images that images/pins.env names: `make demo-containers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import httpx
import pytest
from kfp.components import load_component_from_file
from sentence_transformers import SentenceTransformer

import pipeline
from components.core.artifacts import verify
from components.kubeflow.options import read_images
from images.run_stage import CONFINED
from tests.containers.companions import LLM_URL, STORE, companions
from tests.containers.engine import USER, Containers, client, docker, why_no_engine
from tests.pipeline.on_this_host import running_on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_engine()), reason=f"NOT RUN IN THEIR IMAGES: {why_no_engine()}"),
]

CORPUS = ["assert", "booleans", "break", "continue", "del", "for", "global", "if", "lambda", "return", "while", "yield"]
FEW = {"eval_overrides": {"min_eval_queries": 1}, "export_overrides": {"num_probes": 8}}
NAME = "containers-test"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pipeline root that any user may write, as an emptyDir is; containers see it at the same path."""
    before = os.umask(0)
    directory = tmp_path_factory.mktemp("containers")
    directory.parent.chmod(0o755)
    directory.parent.parent.chmod(0o755)
    directory.chmod(0o777)
    corpus = directory / "corpus"
    corpus.mkdir(mode=0o755)
    for name in CORPUS:
        (corpus / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    yield directory
    os.umask(before)


def compiled(root: Path, *options: str) -> Path:
    out = root / "pipelines"
    argv = ["compile", "--profile", "small", "--node-labels", "none", *options, "--out", str(out)]
    assert pipeline.main(argv) == 0
    return max(out.glob("*.yaml"), key=lambda path: path.stat().st_mtime_ns)


def artifact(root: Path, name: str) -> Path:
    return max(root.rglob(name), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def recipe(root: Path) -> Containers:
    """The whole recipe, executed: no stage has a network, and none can start a shell."""
    run = Containers(without_shell=True)
    path = compiled(root, "--from", "sdg")
    with running_on(run, root):
        load_component_from_file(str(path))(
            corpus_uri=str(root / "corpus"),
            min_gain=-1.0,
            served_model_name=NAME,
            deploy_overrides={"target": "local", "host_port": 0, "state_dir": "/tmp/state"},
            **FEW,
        )
    for task, seconds in zip(run.tasks, run.seconds, strict=True):
        print(f"{task.stage:9} {seconds:7.1f} s   {task.image}")
    return run


def test_every_stage_runs_in_its_image(recipe: Containers, root: Path) -> None:
    stages = ("sdg", "prep", "finetune", "eval", "export", "deploy")
    assert [(task.stage, task.code) for task in recipe.tasks] == [(name, 0) for name in stages]
    pinned = read_images()
    kinds = ("cpu", "gpu", "gpu", "gpu", "export", "cpu")
    assert [task.image for task in recipe.tasks] == [pinned[kind] for kind in kinds]
    for name in ("qa_pairs", "training_data", "eval_data", "checkpoint", "eval_results", "exported_model"):
        assert verify(artifact(root, name), name, sealed=True)
        assert artifact(root, name).stat().st_uid == int(USER.partition(":")[0])


def test_the_server_image_serves_the_exported_model(recipe: Containers, root: Path) -> None:
    model = artifact(root, "exported_model")
    options = [*CONFINED, "--user", USER, "--network", "host", "--volume", f"{model}:/model:ro"]
    arguments = ["--model", "/model", "--name", NAME, "--host", "127.0.0.1", "--port", "18477"]
    container = docker("run", "--detach", *options, read_images()["server"], *arguments)
    try:
        body = {"model": NAME, "input": ["how do I leave a loop"], "input_type": "query"}
        vector = _posted("http://127.0.0.1:18477/v1/embeddings", body)["data"][0]["embedding"]
        tuned = SentenceTransformer(str(artifact(root, "checkpoint")), device="cpu").encode("how do I leave a loop")
        assert vector == pytest.approx(tuned.tolist(), abs=1e-4)
        docker("stop", "--time", "20", container)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    finally:
        docker("rm", "--force", container)


def _posted(url: str, body: dict[str, Any]) -> dict[str, Any]:
    for _ in range(100):
        try:
            return httpx.post(url, json=body, timeout=30).raise_for_status().json()
        except (httpx.ConnectError, httpx.HTTPStatusError):
            time.sleep(0.3)
    raise AssertionError("the server did not start")


def test_generation_reaches_the_llm_and_the_store_and_nothing_else(root: Path) -> None:
    path, image = compiled(root, "--from", "sdg", "--to", "sdg"), read_images()["cpu"]
    with companions(client(), image, "store", "llm") as network:
        run = Containers({"sdg": network}, {"sdg": {**STORE, "NVIDIA_API_KEY": "nvapi-canary"}})
        settings = {"llm_base_url": LLM_URL, "ledger_uri": "s3://bucket/ledger", "num_files": 4}
        with running_on(run, root):
            load_component_from_file(str(path))(
                corpus_uri=str(root / "corpus"), generator="llm", sdg_overrides=settings
            )
        assert [(task.stage, task.code) for task in run.tasks] == [("sdg", 0)]
        assert "nvapi-canary" not in run.tasks[0].output
        assert (artifact(root, "qa_pairs") / "qa_pairs.jsonl").stat().st_size > 1000
        assert "ledger/" in in_network(network, image, _LISTING)
        assert in_network(network, image, _INTERFACES).split() == ["lo"]


def test_training_keeps_its_states_in_the_store_and_reaches_nothing_else(recipe: Containers, root: Path) -> None:
    path, image = compiled(root, "--from", "finetune", "--to", "finetune"), read_images()["gpu"]
    with companions(client(), image, "store") as network:
        run = Containers({"finetune": network}, {"finetune": STORE})
        with running_on(run, root):
            load_component_from_file(str(path))(
                training_data_uri=str(artifact(root, "training_data")),
                finetune_overrides={"checkpoint_uri": "s3://bucket/states", "checkpoint_every_steps": 1},
            )
        assert [(task.stage, task.code) for task in run.tasks] == [("finetune", 0)]
        assert "/manifest.json" in in_network(network, image, _LISTING)
        assert in_network(network, image, _INTERFACES).split() == ["lo"]


def in_network(network: str, image: str, script: str) -> str:
    """What ``script`` prints in ``network``."""
    options = ["--rm", *CONFINED, "--user", USER, "--network", network, "--entrypoint", "python"]
    return docker("run", *options, image, "-c", script)


_LISTING = f"""
import urllib.request
print(urllib.request.urlopen("{STORE["AWS_ENDPOINT_URL"]}/bucket?list-type=2").read().decode())
"""
_INTERFACES = "print(*(line.partition(':')[0] for line in list(open('/proc/net/dev'))[2:]))"


def test_a_stage_that_fails_fails_the_run(root: Path) -> None:
    """kfp's own runner has lost exit codes of containers; this one must not."""
    empty = root / "empty"
    empty.mkdir(exist_ok=True)
    run, before = Containers(), set(root.rglob("qa_pairs"))
    with running_on(run, root), pytest.raises(RuntimeError, match="sdg"):
        load_component_from_file(str(compiled(root, "--from", "sdg")))(corpus_uri=str(empty))
    assert [(task.stage, task.code) for task in run.tasks] == [("sdg", 2)] * 3
    assert set(root.rglob("qa_pairs")) == before


@pytest.mark.parametrize("kind", ["cpu", "gpu", "export", "server"])
def test_an_image_is_what_a_restricted_cluster_takes(kind: str) -> None:
    image = read_images()[kind]
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    user, _, group = config["User"].partition(":")
    assert user.isdigit() and int(user) >= 10000 and group == "0"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"nemotron-embed/{kind}"
    assert labels["org.opencontainers.image.version"] == pipeline.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    # OpenShift chooses a user of its own, with group 0.
    for uid in (USER, "1000650000:0"):
        options = ["--rm", *CONFINED, "--user", uid, "--network", "none", "--entrypoint", "python"]
        tried = subprocess.run(
            [client(), "run", *options, image, "-c", _PROBE], capture_output=True, text=True, check=False
        )
        # TensorRT's own image, which export is built on, has pip beside its Python packages.
        pip = "no-pip" if kind != "export" else "pip" if "no-pip" not in tried.stdout else "no-pip"
        assert (tried.returncode, tried.stdout.split()) == (0, ["read-only", pip, "tmp"]), tried.stderr


_PROBE = """
import importlib.util, pathlib, components
try:
    pathlib.Path("/opt/venv/x").write_text("x")
except OSError:
    print("read-only")
print("pip" if importlib.util.find_spec("pip") else "no-pip")
pathlib.Path("/tmp/x").write_text("x")
print("tmp")
"""
