"""Stages as commands on a real S3: paid answers, training states and the release lie in Ceph's gateway."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.core.artifacts import seal
from components.core.encoder.config import EncoderConfig
from components.core.serving.model_manifest import MODEL_MANIFEST, read_model_manifest
from components.core.store import open_store
from tests.exported import Exported
from tests.finetune.training import records, texts, write_base, write_data
from tests.sdg.kills import made, run, write_corpus
from tests.sdg.llm_server import llm_server
from tests.storage.ceph import Ceph, ceph_s3, why_no_ceph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_ceph()), reason=f"NOT RUN ON A REAL S3: {why_no_ceph()}"),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Ceph]:
    with ceph_s3() as running:
        yield running


@pytest.fixture
def ceph(gateway: Ceph, monkeypatch: pytest.MonkeyPatch) -> Ceph:
    for name, value in gateway.environment.items():
        monkeypatch.setenv(name, value)
    return gateway


def stage(name: str, work: Path, *arguments: str) -> str:
    """Run a stage as a command; what it logged."""
    argv = [sys.executable, "-m", "components", name, "--work", str(work), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_answers_that_were_paid_for_cost_nothing_again(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary")
    corpus = write_corpus(tmp_path / "corpus", 4)
    with llm_server() as llm:
        assert run(llm, tmp_path / "first", corpus, "ledger_uri=s3://bucket/ledger").returncode == 0
        paid = len(llm.requests)
        assert run(llm, tmp_path / "second", corpus, "ledger_uri=s3://bucket/ledger").returncode == 0
        assert paid > 0 and len(llm.requests) == paid
    assert made(tmp_path / "first") == made(tmp_path / "second")


def test_training_goes_on_on_another_machine(ceph: Ceph, small_config: EncoderConfig, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", small_config)
    data = write_data(tmp_path / "data", records(12), texts(12))
    given = ["--training-data", str(data), f"base_model={base}", "checkpoint_uri=s3://bucket/states"]
    given += ["checkpoint_every_steps=1", "num_epochs=2", "global_batch_size=4", "local_batch_size=4"]
    stage("finetune", tmp_path / "first", *given)
    again = stage("finetune", tmp_path / "second", *given)
    assert "continu" in again
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_a_release_is_what_was_exported(ceph: Ceph, minilm: Exported, tmp_path: Path) -> None:
    sealed = {"exported_model": minilm.model, "deploy_bundle": minilm.bundle}
    for name, directory in sealed.items():
        seal(Path(shutil.copytree(directory, tmp_path / name)), name)
    model = tmp_path / "exported_model"
    given = ["--exported-model", str(model), "--deploy-bundle", str(tmp_path / "deploy_bundle"), "target=gitops"]
    given += ["serving_namespace=team-a", "release_prefix=s3://bucket/models", "backend=onnx"]
    given += ["serving_image=registry.example.com/server:1"]
    stage("deploy", tmp_path / "work", *given)
    manifest = read_model_manifest(model)
    uri = f"s3://bucket/models/sha256-{manifest.digest}"
    objects = "".join(path.read_text() for path in (tmp_path / "work" / "deployment").rglob("*.yaml"))
    assert uri in objects
    store = open_store(uri, setting="x")
    for name in [*manifest.files, MODEL_MANIFEST]:
        assert store.read(name) == (model / name).read_bytes()
