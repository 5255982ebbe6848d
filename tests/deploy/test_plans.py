"""A TensorRT plan is served only where it loads, takes the texts of the model, and says how many at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.serving.bundle import Bundle, read_bundle
from components.core.serving.model_manifest import TensorRTPlanInfo
from components.deploy.backends.compatibility import get_compute_capability
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.render import render
from components.deploy.publishing.publish import ModelUris
from components.deploy.targets import gitops
from components.kubeflow.run_form import NODE_LABELS
from tests.deploy.bundles import plan_facts, write_bundle

A100, H100 = NODE_LABELS["gfd"]["A100"], NODE_LABELS["gfd"]["H100"]


def bundle_of(plan: TensorRTPlanInfo | None, where: Path) -> Bundle:
    encoder = EncoderConfig(base_model="test/base", query_max_length=512, passage_max_length=512)
    return read_bundle(write_bundle(where / "b", 1, encoder=encoder, files=("tensorrt/model.plan",), plan=plan))


def environment(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    config = DeployConfig(**{"model_format": "tensorrt"} | settings)
    release = render(config, bundle, select_contract(config), model_uri="s3://models/x", namespace="team-a")
    (runtime,) = [item for item in release.objects if item["kind"] == "ServingRuntime"]
    return {entry["name"]: entry.get("value") for entry in runtime["spec"]["containers"][0]["env"]}


def test_a_nim_is_told_the_batch_of_the_plan(tmp_path: Path) -> None:
    found = environment(bundle_of(plan_facts(batch=(1, 8, 24)), tmp_path))
    assert found["NIM_CUSTOM_MODEL"] == "/mnt/models/tensorrt"
    assert found["NIM_TRITON_MAX_BATCH_SIZE"] == "24"
    assert found["NIM_TRITON_MAX_SEQ_LENGTH"] == "512"
    both = read_bundle(write_bundle(tmp_path / "both", 1, plan=plan_facts()))
    assert "NIM_TRITON_MAX_BATCH_SIZE" not in environment(both, model_format="onnx")


@pytest.mark.parametrize(
    ("plan", "nodes", "message"),
    [
        (plan_facts(), H100, r"compute capability 8\.0.* \(9\.0\), where it does not load"),
        (plan_facts(), NODE_LABELS["gke"]["H100"], r"\(9\.0\), where it does not load"),
        (plan_facts(), NODE_LABELS["eks"]["H100"], r"\(9\.0\), where it does not load"),
        (plan_facts(hardware_compatibility="same_compute_capability"), H100, r"\(9\.0\), where it does not load"),
        (plan_facts(compute_capability="9.0", gpu="NVIDIA H100 80GB HBM3"), A100, r"\(8\.0\), where it does not load"),
        (plan_facts(hardware_compatibility="ampere_plus"), {"nvidia.com/gpu.product": "Tesla-T4"}, r"\(7\.5\)"),
        (plan_facts(length=(3, 128, 256)), A100, "takes texts of 256 tokens, the model was trained with 512"),
        (plan_facts(batch=(4, 16, 64)), A100, "no fewer than 4 texts at once"),
        (None, A100, "does not say what its TensorRT plan runs on: export again"),
    ],
)
def test_a_plan_that_would_not_serve_is_refused(
    plan: TensorRTPlanInfo | None, nodes: dict[str, str], message: str, tmp_path: Path
) -> None:
    bundle = bundle_of(plan, tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        environment(bundle, serving_node_selector=nodes)
    assert "\n" not in str(refused.value)


def test_nothing_is_copied_for_a_plan_that_would_not_serve(tmp_path: Path) -> None:
    config = DeployConfig(
        target="gitops", serving_namespace="team-a", model_format="tensorrt", serving_node_selector=H100,
        release_prefix="s3://no-such-place/models",
    )  # fmt: skip
    with pytest.raises(InputError, match="does not load"):
        gitops.deploy(config, bundle_of(plan_facts(), tmp_path), ModelUris("s3://no-such-place/exported"))


@pytest.mark.parametrize(
    ("plan", "nodes", "warned"),
    [
        (plan_facts(), A100, ""),
        (plan_facts(), A100 | {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED"}, ""),
        (plan_facts(hardware_compatibility="ampere_plus"), H100, ""),
        (plan_facts(hardware_compatibility="same_compute_capability"), {"nvidia.com/gpu.product": "NVIDIA-A30"}, ""),
        (plan_facts(), {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-40GB"}, "is to serve on NVIDIA-A100-PCIE-40GB"),
        (plan_facts(), {}, "does not tell whether nodes have such GPUs"),
        (plan_facts(), {"pool": "gpu"}, "does not tell whether nodes have such GPUs"),
        (plan_facts(compute_capability="9.0", gpu="NVIDIA H100 80GB HBM3"), H100, ""),
    ],
)
def test_a_plan_is_served_where_it_loads_and_doubts_are_said(
    plan: TensorRTPlanInfo, nodes: dict[str, str], warned: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert environment(bundle_of(plan, tmp_path), serving_node_selector=nodes)
    assert [warned in record.message for record in caplog.records] == ([True] if warned else [])


@pytest.mark.parametrize("labels", NODE_LABELS.values(), ids=NODE_LABELS)
def test_the_labels_that_pipelines_ask_for_are_known(labels: dict[str, dict[str, str]]) -> None:
    """Against NVIDIA's list of compute capabilities."""
    assert get_compute_capability(labels["A100"]) == (8, 0)
    assert get_compute_capability(labels["H100"]) == (9, 0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"nvidia.com/gpu.product": "NVIDIA-A10G"}, (8, 6)),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"}, (8, 0)),
        ({"nvidia.com/gpu.product": "NVIDIA-L40S"}, (8, 9)),
        ({"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}, (9, 0)),
        ({"nvidia.com/gpu.compute.major": "12", "nvidia.com/gpu.compute.minor": "0"}, (12, 0)),
        ({"nvidia.com/gpu.product": "NVIDIA-FUTURE"}, None),
        ({"team": "a100"}, None),
    ],
)
def test_gpus_by_their_labels(labels: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert get_compute_capability(labels) == expected
