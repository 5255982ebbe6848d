"""The compiled pipelines, executed: kfp runs the YAML, the stages' own programs do the work on real, small data."""

from __future__ import annotations

import json
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
from components.deploy.local.releases_on_disk import stop_service
from tests.exported import Exported
from tests.pipeline.on_this_host import Host, host
from tests.waiting import LIMIT_SECONDS

pytestmark = pytest.mark.slow

NAME = "test-pipeline"
CORPUS = ["assert", "booleans", "break", "continue", "del", "for", "global", "if", "lambda", "return", "while", "yield"]


# A dozen pages have few questions and need few probes.
FEW = {"eval_overrides": {"min_eval_queries": 1}, "export_overrides": {"num_probes": 8}}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pipelines")
    assert pipeline.main(["compile", "--profile", "small", "--node-labels", "none", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for name in CORPUS:
        (directory / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return directory


@pytest.fixture
def kfp(tmp_path: Path) -> Iterator[Host]:
    with host(tmp_path / "root") as runner:
        yield runner


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings of a service of the test's own, which is stopped at the end."""
    state = str(tmp_path / "state")
    yield {"served_model_name": NAME, "deploy_overrides": {"target": "local", "host_port": 0, "state_dir": state}}
    stop_service(state, NAME)


def artifact(root: Path, name: str) -> Path:
    (found,) = root.rglob(name)
    return found


def test_documents_become_a_service(
    pipelines: Path, corpus: Path, kfp: Host, service: dict[str, Any], tmp_path: Path
) -> None:
    run = load_component_from_file(str(pipelines / "nemotron-embed.yaml"))
    run(corpus_uri=str(corpus), min_gain=-1.0, **FEW, **service)
    assert [(task.stage, task.code) for task in kfp.tasks] == [
        (name, 0) for name in ("sdg", "prep", "finetune", "eval", "export", "deploy")
    ]
    assert len({task.image for task in kfp.tasks}) == 3
    root = tmp_path / "root"
    for name in ("qa_pairs", "training_data", "eval_data", "checkpoint", "eval_results", "exported_model"):
        assert verify(artifact(root, name), name, sealed=True)
    deployment = json.loads((artifact(root, "deployment") / "deployment.json").read_text(encoding="utf-8"))
    body = {"model": NAME, "input": ["how do I leave a loop"], "input_type": "query"}
    answer = httpx.post(f"{deployment['endpoint']}/v1/embeddings", json=body, timeout=LIMIT_SECONDS).raise_for_status()
    tuned = SentenceTransformer(str(artifact(root, "checkpoint")), device="cpu").encode("how do I leave a loop")
    assert answer.json()["data"][0]["embedding"] == pytest.approx(tuned.tolist(), abs=1e-4)


def test_a_model_that_the_gate_refuses_is_not_exported(
    pipelines: Path, minilm: Exported, kfp: Host, service: dict[str, Any], tmp_path: Path
) -> None:
    run = load_component_from_file(str(pipelines / "nemotron-embed-from-eval.yaml"))
    uris = {"checkpoint_uri": str(minilm.checkpoint), "eval_data_uri": str(minilm.eval_data)}
    run(**uris, min_gain=0.9, **service)
    assert [(task.stage, task.code) for task in kfp.tasks] == [("eval", 0)]
    assert "gate not passed" in kfp.tasks[0].output


def test_from_labelled_records_to_training_only(kfp: Host, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    lines = [
        json.dumps({"query": f"what does {name} mean", "positive": topics[name][:400], "document": name})
        for name in CORPUS
    ]
    (records / "labelled.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--from", "prep", "--to", "finetune", "--profile", "small", "--node-labels", "none"]
    assert pipeline.main(["compile", *options, "--out", str(tmp_path)]) == 0
    run = load_component_from_file(str(tmp_path / "nemotron-embed-from-prep-to-finetune.yaml"))
    run(qa_pairs_uri=str(records))
    assert [(task.stage, task.code) for task in kfp.tasks] == [("prep", 0), ("finetune", 0)]
    assert SentenceTransformer(str(artifact(tmp_path / "root", "checkpoint")), device="cpu").encode("x").shape == (384,)


def test_a_stage_that_fails_ends_the_run(pipelines: Path, kfp: Host, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = load_component_from_file(str(pipelines / "nemotron-embed.yaml"))
    with pytest.raises(RuntimeError, match="sdg"):
        run(corpus_uri=str(tmp_path / "empty"))
    assert [(task.stage, task.code) for task in kfp.tasks] == [("sdg", 2)] * 3
    assert "error: " in kfp.tasks[0].output.splitlines()[-1]
    assert not list((tmp_path / "root").rglob("qa_pairs"))
