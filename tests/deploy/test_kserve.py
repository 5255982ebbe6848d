"""Deployments that succeed: what clients reach, what stays, what starts again and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from components.core.artifacts import seal
from components.core.errors import ActionNeeded, InputError
from components.core.kfp_io import run_from_executor_input
from components.core.serving.client import EmbeddingClient
from components.core.settings import load
from components.deploy.component import STAGE, DeployConfig
from components.deploy.kubernetes import permissions
from components.deploy.kubernetes.cluster import connect
from components.deploy.kubernetes.releases import Releases
from components.deploy.verification.verify_endpoint import list_failures
from tests.deploy.cluster.server import RBAC
from tests.deploy.conftest import LIVE, Team
from tests.deploy.schemas import problems

CHECKS = 19
URL = "http://embed-live.team-a.svc.cluster.local"


def test_the_first_release(team: Team) -> None:
    deployed = team.deploy("a")
    assert deployed.endpoint == URL
    assert (deployed.previous_endpoint, deployed.reindex_required) == ("", True)
    assert len(deployed.checks) == CHECKS
    assert list_failures(deployed.checks) == list_failures(deployed.live_checks) == []
    (release,) = team.releases()
    assert team.cluster.store.objects["services", LIVE]["spec"]["selector"] == {"app": f"isvc.{release}-predictor"}
    # Proven behind an address of its own before clients could reach it.
    first = [service for service, _ in team.cluster.answered]
    assert first.index(LIVE) > first.index(f"{release}-direct")
    assert {item["kind"] for item in deployed.objects} == {
        "ServingRuntime", "InferenceService", "Service", "PodDisruptionBudget",
    }  # fmt: skip


def test_the_same_again_changes_and_starts_nothing(team: Team) -> None:
    team.deploy("a")
    before = {key: item["metadata"]["resourceVersion"] for key, item in _ours(team).items()}
    again = team.deploy("a", rollout_timeout=7, soak_seconds=0)
    assert {key: item["metadata"]["resourceVersion"] for key, item in _ours(team).items()} == before
    assert set(team.cluster.controller.starts.values()) == {1}
    assert again.reindex_required is False
    assert len(again.checks) == CHECKS


def _ours(team: Team) -> dict[tuple[str, str], dict[str, Any]]:
    kinds = ("inferenceservices", "servingruntimes", "services", "poddisruptionbudgets")
    # The status changes by itself.
    fixed = {key: item for key, item in team.cluster.store.objects.items() if key[0] in kinds[1:]}
    generations = {key: i for key, i in team.cluster.store.objects.items() if key[0] == kinds[0]}
    assert all(item["metadata"]["generation"] == 1 for item in generations.values())
    return fixed


def test_another_model_replaces_it_and_the_old_one_stays_for_a_roll_back(team: Team) -> None:
    team.deploy("a")
    (first,) = team.releases()
    second = team.deploy("b")
    assert team.live() == "b"
    assert second.reindex_required is True
    assert second.previous_endpoint == f"http://{first}-direct.team-a.svc.cluster.local"
    assert first in team.releases()
    third = team.deploy("c")
    assert team.live() == "c"
    assert len(team.releases()) == 2
    assert first not in team.releases()
    leftovers = [name for (_, name) in team.cluster.store.objects if name.startswith(first)]
    assert leftovers == []
    assert third.previous_endpoint != second.previous_endpoint


def test_back_to_the_previous_model_starts_no_pod(team: Team) -> None:
    team.deploy("a")
    team.deploy("b")
    back = team.deploy("a")
    assert team.live() == "a"
    assert set(team.cluster.controller.starts.values()) == {1}
    assert back.previous_endpoint
    history = json.loads(team.cluster.store.objects["configmaps", "embed-releases"]["data"]["releases.json"])
    digests = [team.bundle(model).manifest.digest for model in ("a", "b")]
    assert [entry["model_digest"] for entry in history] == digests
    assert history[0]["previous"] == history[1]["release"]


def test_no_earlier_release_is_kept_when_none_is_wanted(team: Team) -> None:
    team.deploy("a")
    second = team.deploy("b", keep_releases=0)
    assert len(team.releases()) == 1
    assert second.previous_endpoint == ""


def test_new_settings_of_the_same_model_need_no_new_index(team: Team) -> None:
    team.deploy("a")
    deployed = team.deploy("a", serving_memory="40Gi")
    assert len(team.releases()) == 2
    assert deployed.reindex_required is False
    assert deployed.previous_endpoint


def test_what_a_killed_deployment_left_is_removed(team: Team) -> None:
    team.deploy("a")
    store = team.cluster.store
    (live,) = team.releases()
    # As left by a deployment that was killed while its candidate started: its pods hold a GPU, the lease is still held.
    for plural in ("inferenceservices", "servingruntimes", "services", "poddisruptionbudgets"):
        suffix = "-direct" if plural == "services" else ""
        left = store.get(plural, live + suffix)
        left["metadata"] = {k: v for k, v in left["metadata"].items() if k in ("labels", "annotations")}
        store.create(plural, {**left, "metadata": {**left["metadata"], "name": f"embed-r-00000000{suffix}"}})
    lease = store.get("leases", "embed-deploy")
    lease["spec"] |= {"holderIdentity": "killed-pod", "renewTime": "2026-01-01T00:00:00Z", "leaseDurationSeconds": 1}
    store.replace("leases", "embed-deploy", lease)
    team.deploy("b")
    assert team.live() == "b"
    assert not any(name.startswith("embed-r-00000000") for _, name in store.objects)
    assert store.objects["leases", "embed-deploy"]["spec"]["holderIdentity"] == ""


def test_other_services_of_the_namespace_are_left_alone(team: Team) -> None:
    team.deploy("a")
    others = team.deploy("b", service_name="other")
    assert others.endpoint == "http://other-live.team-a.svc.cluster.local"
    assert others.previous_endpoint == ""
    team.deploy("c")
    team.deploy("b")
    assert len([name for name in team.releases() if name.startswith("other-r-")]) == 1


def test_an_api_server_that_stumbles_is_asked_again(team: Team) -> None:
    seen = []

    def every_third(method: str, path: str) -> tuple[int, str] | None:
        seen.append(path)
        return ((429, "slow down"), (500, "etcdserver: request timed out"), (503, "no"))[len(seen) % 9 // 3] \
            if len(seen) % 3 == 0 else None  # fmt: skip

    team.cluster.fault = every_third
    team.deploy("a")
    team.deploy("b")
    assert team.live() == "b"


def test_a_nim_in_half_precision_is_held_to_its_own_limits(team: Team) -> None:
    """NIM 2.x computes in half precision: vectors off by what that explains pass; of the ONNX model they do not."""

    def slightly_off(_: Any, __: Any, vectors: np.ndarray) -> np.ndarray:
        shifted = vectors + 0.005 * np.sign(vectors[:, ::-1])
        return (shifted / np.linalg.norm(shifted, axis=1, keepdims=True)).astype(np.float32)

    team.faults["a"] = slightly_off
    with pytest.raises(ActionNeeded, match="cosine to fine-tuned"):
        team.deploy("a")
    image = "nvcr.io/nim/nvidia/nemotron-3-embed-1b:2.2.2"
    team.deploy("a", serving_image=image, model_uri="gs://models/checkpoint")
    assert team.live() == "a"


def test_without_a_spare_gpu(team: Team) -> None:
    """Beside each other there is no room; one after the other there is, and what fails gives way to what served."""
    team.cluster.controller.gpus = 1
    team.deploy("a")
    with pytest.raises(ActionNeeded, match="no node takes its pod"):
        team.deploy("b")
    assert team.live() == "a"
    deployed = team.deploy("b", strategy="recreate")
    assert team.live() == "b"
    assert deployed.previous_endpoint == ""
    team.faults["c"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded, match="is not what was exported"):
        team.deploy("c", strategy="recreate")
    assert team.live() == "b"
    with EmbeddingClient(URL, "team/embed") as endpoint:
        served = endpoint.embed(["query 0 about valves"], "query")[0]
    np.testing.assert_allclose(served, team.bundle("b").tuned[0], atol=1e-6)
    team.deploy("a", strategy="recreate")
    assert team.live() == "a"


def test_a_service_that_was_left_stopped_is_started_again(team: Team) -> None:
    """Its deployment was killed after it had stopped the old release; the next one fails too."""
    team.deploy("a")
    releases = Releases(connect(""), "embed")
    releases.stop(team.releases()[0])
    team.faults["b"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded):
        team.deploy("b")
    with EmbeddingClient(URL, "team/embed") as endpoint:
        assert endpoint.is_ready()


@pytest.mark.slow
def test_the_role_is_exactly_what_is_asked_for_and_used(team: Team) -> None:
    """The stand-in refuses whatever the Role does not grant; nothing is granted that no deployment needs."""
    role = next(item for item in yaml.safe_load_all(RBAC.read_text(encoding="utf-8")) if item["kind"] == "Role")
    granted = {
        (verb, group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    every_option = {
        "network_policy_namespaces": ["monitoring"], "storage_secret_name": "models-s3", "strategy": "canary",
        "gateway": "gateways/public", "canary_step_seconds": 0.05,
    }  # fmt: skip
    needed = permissions.list_required_rules(team.config(**every_option))
    assert {(verb, *what) for what, verbs in needed.items() for verb in verbs} == granted
    team.deploy("a")
    team.deploy("a", **every_option)
    for model in ("b", "c"):
        team.deploy(model)
    team.faults["a"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded, match="is not what was exported"):
        team.deploy("a")
    team.cluster.store.objects.pop(("services", LIVE))
    team.cluster.breaks = lambda service, _: service == LIVE
    with pytest.raises(ActionNeeded, match="is not what was exported"):
        team.deploy("b")
    assert granted - set(team.cluster.requests) == set()


def test_a_checkpoint_behind_vllm(team: Team) -> None:
    """Asked in vLLM's own words, whose API has neither NIM's paths nor its input types."""
    deployed = team.deploy("a", backend="vllm")
    assert list_failures(deployed.checks) == list_failures(deployed.live_checks) == []
    (release,) = team.releases()
    predictor = team.cluster.store.objects["inferenceservices", release]["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == "s3://checkpoints/a"
    team.faults["b"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded, match="cosine to fine-tuned"):
        team.deploy("b", backend="vllm")
    assert team.live() == "a"


def shares(team: Team) -> list[int]:
    """Percent of the requests that candidates got, step by step, as the gateway was told."""
    found = []
    for body in team.cluster.applied:
        if body["kind"] == "HTTPRoute":
            (rule,) = body["spec"]["rules"]
            found.append(sum(ref["weight"] for ref in rule["backendRefs"] if ref["name"].endswith("-direct")))
    return found


CANARY = {"strategy": "canary", "gateway": "gateways/public", "canary_step_seconds": 0.05}


def test_a_canary_of_the_same_weights_gets_a_growing_share(team: Team) -> None:
    team.deploy("a")
    deployed = team.deploy("a", serving_memory="40Gi", **CANARY)
    assert shares(team) == [5, 25, 50, 0]
    assert deployed.reindex_required is False
    assert len(team.releases()) == 2


def test_a_canary_that_fails_gets_no_more_requests(team: Team) -> None:
    team.deploy("a")
    (old,) = team.releases()
    team.cluster.breaks = lambda _, release: release != old and 25 in shares(team)
    with pytest.raises(ActionNeeded, match="cosine to fine-tuned"):
        team.deploy("a", serving_memory="40Gi", **CANARY)
    assert shares(team) == [5, 25, 0]
    assert team.releases() == [old]
    assert team.live() == "a"


def test_no_canary_between_two_models(team: Team) -> None:
    """A share of the queries would be searched in the other model's index."""
    team.deploy("a")
    with pytest.raises(InputError, match=r"in another model.s index.*use bluegreen"):
        team.deploy("b", **CANARY)
    assert shares(team) == []
    assert team.live() == "a"
    assert len(team.releases()) == 1


def test_a_release_goes_with_all_that_was_made_for_it(team: Team) -> None:
    options = {"network_policy_namespaces": ["monitoring"], "storage_secret_name": "models-s3", "keep_releases": 0}
    team.deploy("a", **options)
    (first,) = team.releases()
    account = team.cluster.store.objects["serviceaccounts", f"{first}-models"]
    assert account["secrets"] == [{"name": "models-s3"}]
    policy = team.cluster.store.objects["networkpolicies", first]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app": f"isvc.{first}-predictor"}
    team.deploy("b", keep_releases=0)
    assert not any(name.startswith(first) for _, name in team.cluster.store.objects)


def test_the_ledger_says_what_was_measured_and_why_the_last_one_failed(team: Team) -> None:
    team.deploy("a")
    second = team.deploy("b")
    (latency,) = [check for check in second.checks if check.name == "latency"]
    assert latency.figures["previous_p95_ms"] > 0
    team.faults["c"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded):
        team.deploy("c")
    data = team.cluster.store.objects["configmaps", "embed-releases"]["data"]
    assert json.loads(data["releases.json"])[0]["latency"]["p95_ms"] > 0
    assert "is not what was exported" in data["last-failure.md"]
    assert "Diagnosis of embed-r-" in data["last-failure.md"]


def test_a_budget_of_latency_that_is_not_kept(team: Team) -> None:
    team.deploy("a")
    with pytest.raises(ActionNeeded, match=r"latency p50_ms .*p95 <= 0.001 ms"):
        team.deploy("b", latency_budget_ms=0.001)
    assert team.live() == "a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "nim-operator"}, "backend=nim-operator needs target=gitops"),
        ({"autoscaler": "hpa"}, "need each other"),
        ({"serving_max_replicas": 3}, "need each other"),
        ({"autoscaler": "hpa", "serving_max_replicas": 3, "serving_replicas": 3}, "more than serving_replicas"),
        ({"autoscaler": "keda", "serving_max_replicas": 3}, "keda_prometheus_url and keda_query"),
        ({"autoscaler": "hpa", "serving_max_replicas": 3, "strategy": "recreate"}, "spare GPUs"),
        ({"strategy": "canary"}, "needs gateway"),
        ({"canary_steps": [50, 5]}, "canary_steps must rise"),
        ({"gitops_wait": "flux"}, "gitops_wait needs git_repository"),
        ({"gitops_verify_image": "x:1"}, "needs release_prefix"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(DeployConfig, settings, stage="deploy")
    assert "\n" not in str(raised.value)


def test_as_a_task_of_a_pipeline(team: Team, tmp_path: Path) -> None:
    """What KFP hands in and gets back; numbers arrive as floats."""
    seal(team.bundles["a"], "deploy_bundle")
    artifact = {"name": "b", "uri": str(team.bundles["a"]), "metadata": {"manifest_sha256": "x"}}
    quick = team.config().model_dump(exclude_unset=True)
    message = {
        "inputs": {
            "artifacts": {"deploy_bundle": {"artifacts": [artifact]}},
            "parameterValues": {
                "exported_model_uri": "minio://mlpipeline/v2/artifacts/exported_model",
                "checkpoint_uri": "minio://mlpipeline/v2/artifacts/checkpoint",
                "served_model_name": quick.pop("served_model_name"),
                "serving_namespace": "team-a",
                "serving_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
                "overrides": {**quick, "serving_replicas": 2.0},
            },
        },
        "outputs": {
            "artifacts": {
                name: {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]}
                for name in ("deployment", "deploy_metrics")
            },
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    run_from_executor_input(STAGE, json.dumps(message))
    answer = json.loads((tmp_path / "executor_output.json").read_text(encoding="utf-8"))
    assert answer["parameterValues"] == {"endpoint": URL, "previous_endpoint": "", "reindex_required": True}
    about = json.loads((tmp_path / "deployment/deployment.json").read_text(encoding="utf-8"))
    assert about["endpoint"] == URL
    assert about["model_uri"] == "s3://mlpipeline/v2/artifacts/exported_model"
    objects = [yaml.safe_load(path.read_text()) for path in (tmp_path / "deployment/manifests").glob("*-*.yaml")]
    assert len(objects) == 5
    assert all(list(problems(item)) == [] for item in objects)
    verification = json.loads((tmp_path / "deployment/verification.json").read_text(encoding="utf-8"))
    assert len(verification["checks"]) == CHECKS
    written = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".yaml")]
    assert not any("canary-token" in text for text in written)
