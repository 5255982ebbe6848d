"""The run form of the compiled pipelines: what a person sees of deploy, and with which defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline


def parameters(out: Path, *options: str) -> dict[str, Any]:
    assert pipeline.main(["compile", "--from", "deploy", "--out", str(out), *options]) == 0
    text = (out / "nemotron-embed-from-deploy.yaml").read_text(encoding="utf-8")
    root = next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"]
    return {name: about.get("defaultValue") for name, about in root.items()}


def test_the_form_asks_for_what_a_cluster_decides(tmp_path: Path) -> None:
    assert set(parameters(tmp_path)) == {
        "deploy_bundle_uri", "exported_model_uri", "checkpoint_uri", "served_model_name", "serving_namespace",
        "backend", "serving_image", "release_prefix", "serving_node_selector", "deploy_overrides",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "selector"),
    [
        ((), {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}),
        (("--node-labels", "gke"), {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}),
        (("--node-labels", "eks"), {"karpenter.k8s.aws/instance-gpu-name": "a100"}),
        (("--node-labels", "none"), {}),
        (("--node-labels", "gke", "--set", "serving_node_selector={pool: h100}"), {"pool": "h100"}),
        (("--set", "deploy.serving_node_selector={pool: h100}"), {"pool": "h100"}),
    ],
)
def test_the_model_is_served_on_nodes_of_the_same_kind(
    tmp_path: Path, options: tuple[str, ...], selector: dict[str, str]
) -> None:
    assert parameters(tmp_path, *options)["serving_node_selector"] == selector


def test_the_demos_profile_stays_on_its_machine(tmp_path: Path) -> None:
    found = parameters(tmp_path, "--profile", "small", "--node-labels", "none")
    assert found["deploy_overrides"]["target"] == "local"
