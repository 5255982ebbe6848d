"""Every backend, target and profile: what is rendered is valid, keeps to the restricted standard, and stays the same.

KServe's and the NIM operator's objects are held against their own schemas where KSERVE_CRDS names a folder with them,
all others against those of Kubernetes, strictly: an unknown field is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.bundle import Bundle, read_bundle
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.render import as_files, live_service, render
from components.deploy.objects.verify_job import verify_job
from components.deploy.publishing.publish import ModelUris, publish_model
from components.deploy.targets.canary import render_route
from components.recipe.plan import resolve_settings
from components.recipe.profiles import PROFILES
from components.recipe.stages import by_name
from tests.deploy.bundles import plan_facts, write_bundle
from tests.deploy.pod_security import violations
from tests.deploy.schemas import FILES, needed, problems

VERSIONS = ("1.29", "1.35")
OUR_GROUPS = ("serving.kserve.io", "apps.nvidia.com", "gateway.networking.k8s.io")
BACKENDS: dict[str, dict[str, Any]] = {
    "nim 1.x": {"backend": "nim", "serving_image": "nvcr.io/nim/nvidia/llama-nemotron-embed-1b-v2:1.13.0"},
    "nim 1.x tensorrt": {"backend": "nim", "serving_image": "nvcr.io/nim/a/b:1.13.0", "model_format": "tensorrt"},
    "nim 2.2": {"backend": "nim", "serving_image": "nvcr.io/nim/nvidia/nemotron-3-embed-1b:2.2.2"},
    "nim 2.4": {"backend": "nim", "serving_image": f"nvcr.io/nim/a/b:2.4.0@sha256:{'a' * 64}"},
    "vllm": {"backend": "vllm", "serving_image": "", "vllm_arguments": ["--trust-remote-code"]},
    "onnx": {"backend": "onnx", "serving_image": "registry.example.com/nemotron-embed/server:0.1.0"},
    "nim operator 1.x": {"backend": "nim-operator", "serving_image": "nvcr.io/nim/a/b:1.13.0"},
    "nim operator 2.x": {"backend": "nim-operator", "serving_image": "nvcr.io/nim/a/b:2.2.2"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all": {
        "network_policy_namespaces": ["kserve", "monitoring"], "storage_secret_name": "models-s3",
        "serving_priority_class": "serving", "serving_gpu_resource": "nvidia.com/mig-1g.20gb", "serving_gpu_count": 2,
        "serving_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "serving_tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
        "serving_run_as_user": 1234, "shm_size": "2Gi", "strategy": "canary",
        "gateway": "gateways/public", "gateway_host": "embed.example.com",
    },
    "hpa": {"autoscaler": "hpa", "serving_max_replicas": 3},
    "keda": {
        "autoscaler": "keda", "serving_max_replicas": 4, "autoscaler_target": 0.5,
        "keda_prometheus_url": "http://prometheus.monitoring:9090", "keda_query": "sum(rate(x{job=\"embed\"}[1m]))",
    },
}  # fmt: skip
REFUSED = {
    # MiniLM was trained without prefixes, and with other lengths of queries and passages.
    "small": ("nim 1.x", "nim 1.x tensorrt", "nim 2.2", "nim 2.4", "vllm", "nim operator 1.x", "nim operator 2.x"),
    # Its export is the checkpoint itself.
    "nemotron3": ("nim 1.x", "nim 1.x tensorrt", "onnx", "nim operator 1.x"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Of each profile, as export describes its model."""
    found = {}
    for name in PROFILES:
        stages = resolve_settings([by_name("prep"), by_name("export")], profile_name=name, values={})
        encoder: EncoderConfig = stages["prep"].encoder()
        where = tmp_path_factory.mktemp(name) / "bundle"
        form = "onnx" if stages["export"].enabled else "checkpoint"
        names = ("onnx/model.onnx", "tensorrt/model.plan") if form == "onnx" else ("checkpoint/model.safetensors",)
        # Its nodes are A100s by default, H100s with all options.
        plan = plan_facts(hardware_compatibility="ampere_plus", length=(3, 128, encoder.passage_max_length))
        found[name] = read_bundle(
            write_bundle(
                where, 1, encoder=encoder, files=names, model_format=form, plan=plan if form == "onnx" else None
            )
        )
    return found


def rendered(bundle: Bundle, target: str, **settings: Any) -> list[Object]:
    """Everything that this target writes or applies."""
    if settings["backend"] == "nim-operator":
        settings["model_uri"] = "pvc://models/embed/sha256-0"
    config = DeployConfig(target=target, serving_namespace="team-a", **settings)
    how = select_contract(config)
    uri = publish_model(config, bundle, how, ModelUris("s3://models/exported", "minio://mlpipeline/v2/checkpoint"))
    release = render(config, bundle, how, model_uri=uri, namespace="team-a")
    objects = [*release.objects, live_service(release)]
    if target == "gitops":
        verifying = config.model_copy(update={"gitops_verify_image": "registry.example.com/nemotron-embed/cpu:0.1.0"})
        objects.append(verify_job(verifying, release, uri, how.api))
    return [*objects, *([render_route(config, release, 25)] if config.strategy == "canary" else [])]


def combinations() -> Iterator[Any]:
    for profile in PROFILES:
        for backend in BACKENDS:
            for target in ("kserve", "gitops"):
                for options in OPTIONS:
                    if backend.startswith("nim operator") and target == "kserve":
                        continue
                    yield pytest.param(profile, backend, target, options, id=f"{profile}-{backend}-{target}-{options}")


@pytest.mark.parametrize(("profile", "backend", "target", "options"), combinations())
def test_what_is_rendered(bundles: dict[str, Bundle], profile: str, backend: str, target: str, options: str) -> None:
    settings = BACKENDS[backend] | OPTIONS[options]
    if backend in REFUSED.get(profile, ()):
        with pytest.raises(InputError) as refused:
            rendered(bundles[profile], target, **settings)
        assert "\n" not in str(refused.value)
        return
    objects = rendered(bundles[profile], target, **settings)
    for item in objects:
        assert item["metadata"]["namespace"] == "team-a"
        assert list(problems(item)) == []
        if not item["apiVersion"].startswith(OUR_GROUPS):
            for version in VERSIONS:
                kubernetes_validate.validate(item, version, strict=True)
    assert [violations(pod) for pod in pods(objects)] == [[]] * len(list(pods(objects)))
    again = rendered(bundles[profile], target, **settings)
    assert as_files(objects) == as_files(again)
    assert [yaml.safe_load(text) for text in as_files(objects).values()][:-1] == objects


def pods(objects: list[Object]) -> Iterator[dict[str, Any]]:
    """PodSpecs that come of ``objects``, put together as KServe does; the NIM operator puts its own together."""
    kinds = {item["kind"]: item for item in objects}
    if "InferenceService" in kinds:
        runtime, predictor = kinds["ServingRuntime"]["spec"], kinds["InferenceService"]["spec"]["predictor"]
        yield {
            "containers": runtime["containers"],
            "volumes": runtime["volumes"],
            "securityContext": predictor["securityContext"],
            **{key: predictor[key] for key in ("hostNetwork", "hostPID", "hostIPC") if key in predictor},
        }
    if "Job" in kinds:
        yield kinds["Job"]["spec"]["template"]["spec"]


def test_the_rules_of_the_restricted_standard_see_what_breaks_them() -> None:
    """Each rule, by the one change that breaks it."""
    secure = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    good = {
        "containers": [{"name": "c", "securityContext": secure | {"seccompProfile": {"type": "RuntimeDefault"}}}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    assert violations(good) == []
    (container,) = good["containers"]
    for changed in (
        {"hostNetwork": True},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"containers": [container | {"ports": [{"hostPort": 80}]}]},
        *(
            {"containers": [container | {"securityContext": container["securityContext"] | one}]}
            for one in (
                {"privileged": True}, {"allowPrivilegeEscalation": True}, {"capabilities": {}}, {"runAsNonRoot": False},
                {"runAsUser": 0}, {"seccompProfile": {"type": "Unconfined"}}, {"procMount": "Unmasked"},
                {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
            )
        ),
    ):  # fmt: skip
        assert len(violations(good | changed)) == 1, changed


@needed
@pytest.mark.parametrize("kind", FILES)
def test_the_schemas_are_what_objects_are_held_against(bundles: dict[str, Bundle], kind: str) -> None:
    backend = "nim operator 1.x" if kind == "NIMService" else "nim 1.x"
    (item,) = [i for i in rendered(bundles["llama"], "gitops", **BACKENDS[backend]) if i["kind"] == kind]
    assert [path for path, _ in problems(item | {"spec": item["spec"] | {"replica": 1}})] == [".spec"]


def test_releases_are_named_as_they_were(bundles: dict[str, Bundle]) -> None:
    """A new version of this project that renders the same release starts no pod again. Change the digest only with a
    change of what is rendered, and say so in the notes of the release: every service is rolled out anew by it."""
    text = "".join(
        f"{name}\n{body}"
        for backend in ("nim 1.x", "nim 2.2", "vllm", "onnx")
        for name, body in as_files(rendered(bundles["llama"], "kserve", **BACKENDS[backend])).items()
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "a8ef333ae501cdc5"
