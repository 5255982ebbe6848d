"""The runtimes that a namespace may have for other InferenceServices: deploy's own, valid, secure, in nobody's way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.serving.bundle import read_bundle
from components.deploy.backends.images import DEFAULT_IMAGES, select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.kserve_objects import SERVING
from components.deploy.objects.render import render
from components.deploy.objects.shared_runtimes import FILE, as_text
from tests.chart.rendering import NAMESPACE, Object, objects
from tests.chart.values_table import README
from tests.deploy import schemas
from tests.deploy.bundles import write_bundle
from tests.deploy.pod_security import violations

SERVER = "registry.example.com/other/server:9"
ON: dict[str, Any] = {"servingRuntimes": {"enabled": True}, "images": {"server": SERVER}}


def runtimes(values: dict[str, Any]) -> dict[str, Object]:
    return {item["metadata"]["name"]: item for item in objects(values) if item["kind"] == "ServingRuntime"}


def container(runtime: Object) -> Object:
    (found,) = runtime["spec"]["containers"]
    return found


def test_they_are_asked_for() -> None:
    assert runtimes({}) == {}
    found = runtimes(ON)
    assert set(found) == {"nemotron-embed-onnx", "nemotron-embed-nim", "nemotron-embed-vllm"}
    assert {item["metadata"]["namespace"] for item in found.values()} == {NAMESPACE}
    assert container(found["nemotron-embed-onnx"])["image"] == SERVER
    assert container(found["nemotron-embed-nim"])["image"] == DEFAULT_IMAGES["nim"]


def test_the_file_is_what_deploys_code_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == as_text(), "`make docs` writes it"


@schemas.needed
def test_kserve_takes_them() -> None:
    for item in runtimes(ON).values():
        assert list(schemas.problems(item)) == []


@pytest.mark.parametrize("backend", ["onnx", "nim", "vllm"])
def test_one_is_what_deploy_renders_less_the_model(backend: str, tmp_path: Path) -> None:
    """The name is KServe's to fill in; the length of texts, the model's own, is all that is left out."""
    image = SERVER if backend == "onnx" else ""
    config = DeployConfig(backend=backend, serving_image=image)
    bundle = read_bundle(write_bundle(tmp_path / "b", 1))
    release = render(config, bundle, select_contract(config), model_uri="s3://models/x", namespace=NAMESPACE)
    (own,) = [item for item in release.objects if item["kind"] == "ServingRuntime"]
    shared = runtimes(ON)[f"nemotron-embed-{backend}"]
    mine, theirs = container(own), container(shared)
    given = {entry["name"] for entry in mine["env"]} - {entry["name"] for entry in theirs["env"]}
    assert given == ({"NIM_TRITON_MAX_SEQ_LENGTH"} if backend == "nim" else set())
    lost = [argument for argument in mine.get("args", []) if argument not in theirs.get("args", [])]
    assert lost == {"vllm": ["nemotron-embed", "--max-model-len", "64"], "onnx": ["nemotron-embed"]}.get(backend, [])
    texts = [*theirs.get("args", []), *(entry.get("value") for entry in theirs["env"])]
    assert texts.count("{{.Name}}") == 1
    for key in ("image", "command", "ports", "resources", "startupProbe", "livenessProbe", "volumeMounts"):
        assert mine.get(key) == theirs.get(key)
    for key in ("supportedModelFormats", "volumes", "annotations"):
        assert own["spec"][key] == shared["spec"][key]


def test_their_pods_keep_to_the_restricted_standard_by_themselves() -> None:
    for item in runtimes(ON).values():
        spec = item["spec"]
        assert violations({"containers": spec["containers"], "volumes": spec["volumes"]}) == []


def test_no_release_of_deploy_and_no_other_model_meets_them(tmp_path: Path) -> None:
    """Whatever the service is called, a release's name ends in a digest; deploy's labels are not on them."""
    for name, item in runtimes(ON).items():
        config = DeployConfig(service_name=name)
        bundle = read_bundle(write_bundle(tmp_path / name, 1))
        release = render(config, bundle, select_contract(config), model_uri="s3://models/x", namespace=NAMESPACE)
        names = {other["metadata"]["name"] for other in release.objects}
        assert re.fullmatch(rf"{name}-r-[0-9a-f]{{8}}", release.name)
        assert name not in names
        assert item["metadata"]["labels"]["app.kubernetes.io/managed-by"] != "nemotron-embed-deploy"
        assert not any(known["autoSelect"] for known in item["spec"]["supportedModelFormats"])


def test_openshift_gives_the_user_and_a_private_registry_its_secret() -> None:
    found = runtimes(ON | {"openshift": True, "imagePullSecrets": ["registry"]})
    assert not any("runAsUser" in container(item)["securityContext"] for item in found.values())
    secrets = {name: item["spec"].get("imagePullSecrets") for name, item in found.items()}
    assert secrets == {
        "nemotron-embed-onnx": [{"name": "registry"}],
        "nemotron-embed-nim": [{"name": "ngc-pull"}],
        "nemotron-embed-vllm": None,
    }


def test_the_example_of_the_readme_fits_its_runtime() -> None:
    text = README.read_text(encoding="utf-8")
    block = re.search(r"\n\n((    .*\n)+)", text.partition("## InferenceServices of your own")[2])
    assert block
    example = yaml.safe_load(block[1])
    assert example["apiVersion"].startswith(SERVING)
    assert list(schemas.problems(example)) == []
    found = runtimes(ON)
    model = example["spec"]["predictor"]["model"]
    formats = {known["name"] for known in found[model["runtime"]]["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats
    for name, item in found.items():
        (known,) = item["spec"]["supportedModelFormats"]
        assert f"| `{name}` | `{known['name']}` |" in text
