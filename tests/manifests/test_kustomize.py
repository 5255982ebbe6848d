"""Overlays and GitOps samples: every file is there, valid, and the same objects as the chart's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from tests.chart.rendering import CHART, Object, objects, one, problems, without_labels
from tests.manifests.kustomize import MANIFESTS, built, documents, needs_kubectl

pytestmark = pytest.mark.slow

OVERLAYS = ["gke", "eks", "onprem", "openshift", "kind"]
KUSTOMIZATIONS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in (MANIFESTS / "components").glob("*/kustomization.yaml"))


def by_name(found: list[Object]) -> dict[tuple[str, str], Object]:
    return {(item["kind"], item["metadata"]["name"]): without_labels(item) for item in found}


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_every_file_that_is_named_is_there_and_none_is_forgotten(directory: Path) -> None:
    """What holds without kubectl."""
    (kustomization,) = documents(directory / "kustomization.yaml")
    named = kustomization.get("resources", []) + kustomization.get("components", [])
    if directory.name == "pipelines":
        # What `pipeline.py compile` writes there.
        assert named == ["nemotron-embed.yaml"]
        return
    for name in named:
        target = directory / name
        assert target.is_file() or (target / "kustomization.yaml").is_file(), name
    files = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {name for name in named if name.endswith(".yaml")}


def test_the_default_chart_and_the_base_are_the_same_objects_without_kubectl() -> None:
    """Those that the base does not patch."""
    base = by_name(documents(MANIFESTS / "base" / "runner.yaml") + documents(MANIFESTS / "base" / "serving.yaml"))
    chart = by_name(objects())
    for key, item in base.items():
        wanted = json.loads(json.dumps(chart[key]).replace('"team-a"', '"default"'))
        del wanted["metadata"]["namespace"]
        assert item == wanted


@needs_kubectl
def test_the_base_is_the_chart_with_its_defaults() -> None:
    assert by_name(built(MANIFESTS / "base")) == by_name(objects())


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_the_chart_with_the_values_of_that_name(name: str) -> None:
    found = built(MANIFESTS / "overlays" / name)
    values = yaml.safe_load((CHART / f"values-{name}.yaml").read_text())
    assert by_name(found) == by_name(objects(values))
    for item in found:
        assert list(problems(item)) == []
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "nemotron-embed"
    assert found == built(MANIFESTS / "overlays" / name)


@needs_kubectl
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_namespace_is_written_once(name: str, tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    kustomization = tmp_path / "manifests" / "overlays" / name / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("namespace: team-a", "namespace: search"))
    text = json.dumps(built(kustomization.parent))
    assert "team-a" not in text
    assert '"namespace": "default"' not in text


@needs_kubectl
def test_components_are_the_charts_options() -> None:
    store: dict[str, Any] = {"name": "vault"}
    remote = {
        secret: {"data": {key: {"key": "nemotron-embed", "property": key}}}
        for secret, key in (("nvidia-api-key", "NVIDIA_API_KEY"), ("huggingface-token", "HF_TOKEN"))
    }
    options = {
        "monitoring": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "kueue": {"enabled": True, "clusterQueue": "gpus"},
        "servingRuntimes": {"enabled": True},
        "secrets": {"external": {"store": store, "secrets": remote}},
    }
    chart = by_name(objects(options))
    own = [item for path in COMPONENTS for item in documents(path / f"{path.name}.yaml")]
    assert len(own) == 9
    for item in own:
        item["metadata"]["namespace"] = "team-a"
        assert without_labels(item) == chart[item["kind"], item["metadata"]["name"]]


def test_no_secret_and_no_floating_image_is_in_any_manifest() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "kind: Secret\n" not in text, path
        assert ":latest" not in text, path


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GitOps directory with the pipelines that the comment in it says to compile."""
    target = tmp_path_factory.mktemp("gitops") / "pipelines"
    shutil.copytree(MANIFESTS / "gitops" / "pipelines", target)
    (command,) = [line for line in (target / "kustomization.yaml").read_text().splitlines() if "pipeline.py" in line]
    arguments = command.partition("pipeline.py ")[2].split()
    arguments[arguments.index("--out") + 1] = str(target)
    assert pipeline.main(arguments) == 0
    return target


@needs_kubectl
def test_argo_makes_the_pipeline_before_its_version_and_prunes_neither(synced: Path) -> None:
    waves = {item["kind"]: item["metadata"]["annotations"] for item in built(synced)}
    assert {kind: found["argocd.argoproj.io/sync-wave"] for kind, found in waves.items()} == {
        "Pipeline": "0",
        "PipelineVersion": "1",
    }
    assert {found["argocd.argoproj.io/sync-options"] for found in waves.values()} == {"Prune=false"}


@needs_kubectl
def test_flux_makes_each_object_once_and_versions_last(synced: Path, tmp_path: Path) -> None:
    flux = documents(MANIFESTS / "gitops" / "flux.yaml")
    order = {}
    for name in ("nemotron-embed-pipelines", "nemotron-embed-versions"):
        spec = one(flux, "Kustomization", name)["spec"]
        layer = tmp_path / name
        layer.mkdir()
        shutil.copytree(synced, layer / "pipelines")
        body = {"resources": ["pipelines"], "patches": spec["patches"]}
        (layer / "kustomization.yaml").write_text(yaml.safe_dump(body))
        order[name] = ([item["kind"] for item in built(layer)], [part["name"] for part in spec["dependsOn"]])
    assert order == {
        "nemotron-embed-pipelines": (["Pipeline"], ["nemotron-embed"]),
        "nemotron-embed-versions": (["PipelineVersion"], ["nemotron-embed-pipelines"]),
    }


def test_samples_name_directories_that_exist() -> None:
    argo = documents(MANIFESTS / "gitops" / "argocd.yaml")
    flux = documents(MANIFESTS / "gitops" / "flux.yaml")
    paths = [item["spec"]["source"]["path"] for item in argo]
    paths += [item["spec"]["path"] for item in flux if item["kind"] == "Kustomization"]
    assert len(paths) == 5
    assert all((MANIFESTS.parent / path / "kustomization.yaml").is_file() for path in paths)
    waves = [int(item["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"]) for item in argo]
    assert waves == [0, 1]
