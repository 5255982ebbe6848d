"""What chart, overlays and samples hand to other people's operators, against the operators' own schemas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes.trainjob_manifest import PodSettings, render_trainjob
from tests.chart.rendering import CUSTOM, Object, objects
from tests.chart.test_chart import CASES, EVERYTHING
from tests.deploy.schemas import FILES, OPERATOR_DIRECTORY, OPERATOR_FILES, operators_needed, problems
from tests.manifests.kustomize import MANIFESTS, documents


def made() -> list[Object]:
    """One of each kind at least, and every one in the manifests."""
    config = FinetuneConfig(trainer="trainjob", num_nodes=3, gpus_per_node=8, checkpoint_uri="s3://bucket/states")
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface-token", "key": "HF_TOKEN"}}}
    pod_settings = PodSettings("registry/gpu:1", "default-editor", {"gpu": "H100"}, [{"operator": "Exists"}], [secret])
    found = [render_trainjob("finetune-abc", config, "s3://bucket/states/jobs/finetune-abc", pod_settings)]
    found += [item for values in CASES.values() for item in objects(values)]
    for path in [*(MANIFESTS / "components").rglob("*.yaml"), *(MANIFESTS / "gitops").glob("*.yaml")]:
        found += documents(path) if path.name != "kustomization.yaml" else []
    # As the API server gets them: numbers, texts, lists and mappings.
    return [yaml.safe_load(yaml.safe_dump(item)) for item in found if item["kind"] in OPERATOR_FILES]


def test_there_is_a_schema_for_every_kind_of_an_operator() -> None:
    assert {item["kind"] for item in made()} == set(OPERATOR_FILES)
    assert {item["kind"] for item in objects(EVERYTHING)} >= CUSTOM
    assert {*OPERATOR_FILES, *FILES} >= CUSTOM


@operators_needed
def test_operators_take_what_is_made_for_them() -> None:
    present = {path.name for path in Path(OPERATOR_DIRECTORY or "").iterdir()}
    assert set(OPERATOR_FILES.values()) <= present
    for item in made():
        assert list(problems(item)) == [], (item["kind"], item["metadata"]["name"])


@operators_needed
@pytest.mark.parametrize("kind", OPERATOR_FILES)
def test_their_schemas_see_what_is_wrong(kind: str) -> None:
    item: dict[str, Any] = next(item for item in made() if item["kind"] == kind)
    broken = copy.deepcopy(item)
    broken["spec"]["nonsense"] = 1
    assert [path for path, _ in problems(broken)] == [".spec"]
    assert [path for path, _ in problems(item | {"apiVersion": f"{item['apiVersion']}alpha0"})] == [".apiVersion"]
