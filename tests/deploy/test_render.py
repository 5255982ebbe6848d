"""What is rendered is what KServe's own schemas take, keeps pods within limits, and changes only with its causes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.pinned_images import read_pins
from components.core.serving.bundle import Bundle, read_bundle
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.render import Release, live_service, render
from components.deploy.program import run
from tests.deploy.bundles import write_bundle
from tests.deploy.schemas import needed, problems

NIM_1 = "nvcr.io/nim/nvidia/llama-nemotron-embed-1b-v2:1.13.0"
NIM_2 = "nvcr.io/nim/nvidia/nemotron-3-embed-1b:2.2.2"
NIM_2_4 = f"nvcr.io/nim/nvidia/nemotron-3.5-embed-1b:2.4.0@sha256:{'a' * 64}"
ONNX = "registry.example.com/nemotron-embed/server:0.1.0"
URI = "s3://models/embed/sha256-00"
IMAGES: dict[str, dict[str, Any]] = {
    "nim 1.x": {},
    "nim 2.2": {"serving_image": NIM_2},
    "nim 2.4": {"serving_image": NIM_2_4},
    "onnx": {"backend": "onnx", "serving_image": ONNX},
    "onnx on a GPU": {"backend": "onnx", "serving_image": ONNX, "serving_gpu_count": 1},
    "everything set": {
        "serving_node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "serving_tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}],
        "serving_gpu_count": 2,
        "serving_replicas": 3,
        "serving_service_account": "models-reader",
        "serving_run_as_user": 1234,
        "image_pull_secret_name": "",
        "ngc_secret_name": "",
        "shm_size": "2Gi",
    },
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_bundle(tmp_path_factory.mktemp("bundle") / "b", 1))


def rendered(bundle: Bundle, uri: str = URI, **changes: Any) -> Release:
    config = DeployConfig(**changes)
    return render(config, bundle, select_contract(config), model_uri=uri, namespace="team-a")


def part(release: Release, kind: str) -> dict[str, Any]:
    (found,) = [item for item in release.objects if item["kind"] == kind]
    return found


def container(release: Release) -> dict[str, Any]:
    (found,) = part(release, "ServingRuntime")["spec"]["containers"]
    return found


def environment(release: Release) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(release)["env"]}


@pytest.mark.parametrize("settings", IMAGES.values(), ids=IMAGES)
def test_objects_are_valid(bundle: Bundle, settings: dict[str, Any]) -> None:
    release = rendered(bundle, **settings)
    for item in (*release.objects, live_service(release)):
        assert list(problems(item)) == []
        assert _through_the_clients_model(item) == item
        assert item["metadata"]["namespace"] == "team-a"


@needed
def test_kserves_schemas_are_what_objects_are_held_against(bundle: Bundle) -> None:
    service = part(rendered(bundle, **IMAGES["nim 1.x"]), "InferenceService")
    broken = json.loads(json.dumps(service).replace("storageUri", "storageURI"))
    assert [path for path, _ in problems(broken)] == [".spec.predictor.model"]


def _through_the_clients_model(item: dict[str, Any]) -> dict[str, Any]:
    """Read as the official client's typed object and written again: a field that Kubernetes does not know is lost."""
    models = {"Service": "V1Service", "PodDisruptionBudget": "V1PodDisruptionBudget"}
    if item["kind"] not in models:
        return item
    api = client.ApiClient(client.Configuration())

    class Response:
        data = json.dumps(item)

    return api.sanitize_for_serialization(api.deserialize(Response, models[item["kind"]]))


@pytest.mark.parametrize("settings", IMAGES.values(), ids=IMAGES)
def test_pods_keep_to_the_restricted_standard(bundle: Bundle, settings: dict[str, Any]) -> None:
    """The rules of https://kubernetes.io/docs/concepts/security/pod-security-standards, one by one."""
    release = rendered(bundle, **settings)
    pod, runtime = part(release, "InferenceService")["spec"]["predictor"], part(release, "ServingRuntime")["spec"]
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert not pod.get(key) and not runtime.get(key)
    assert {next(iter(set(volume) - {"name"})) for volume in runtime["volumes"]} == {"emptyDir"}
    assert all("hostPort" not in port for port in container(release)["ports"])
    security = container(release)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["privileged"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    mounted = {mount["name"] for mount in container(release)["volumeMounts"]}
    assert mounted == {volume["name"] for volume in runtime["volumes"]}


def test_each_generation_of_nims_gets_its_own_contract(bundle: Bundle) -> None:
    first = environment(rendered(bundle))
    assert first["NIM_CUSTOM_MODEL"] == "/mnt/models/onnx"
    assert first["NIM_TRITON_MAX_SEQ_LENGTH"] == "64"
    assert first["NIM_SERVED_MODEL_NAME"] == "nemotron-embed"
    assert first["NGC_API_KEY"] == {"secretKeyRef": {"name": "ngc-api", "key": "NGC_API_KEY", "optional": True}}
    second = environment(rendered(bundle, serving_image="nvcr.io/nim/nvidia/llama-nemotron-embed-vl-1b-v2:2.0.0"))
    names = {"NIM_MODEL_PATH": "/mnt/models", "NIM_MODEL_NAME": "nemotron-embed", "NIM_MAX_SEQ_LEN": "64"}
    assert names.items() <= second.items()
    assert not {"NIM_ENGINE_MODEL_PATH", "NIM_ENGINE_MODEL_NAME", "NIM_PIPELINE_MAX_SEQ_LEN"} & set(second)
    for image in (NIM_2, NIM_2_4):
        newer = environment(rendered(bundle, serving_image=image))
        assert newer["NIM_ENGINE_MODEL_PATH"] == "/mnt/models"
        assert newer["NIM_ENGINE_MODEL_NAME"] == "nemotron-embed"
        assert newer["NIM_PIPELINE_MAX_SEQ_LEN"] == "64"
        # NIM 2.2 does not start when one of these is set.
        assert not {"NIM_MODEL_PATH", "NIM_MODEL_NAME", "NIM_SERVED_MODEL_NAME"} & set(newer)
    assert not any("NIM_CUSTOM_MODEL" in found for found in (second, newer))
    own = rendered(bundle, backend="onnx", serving_image=ONNX)
    assert environment(own) == {}
    assert container(own)["args"][:4] == ["--model", "/mnt/models", "--name", "nemotron-embed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serving_image": "nvcr.io/nim/nvidia/llama:latest"}, "never latest"),
        ({"serving_image": "nvcr.io/nim/nvidia/llama"}, "never latest"),
        ({"serving_image": "registry:5000/nim"}, "never latest"),
        ({"serving_image": f"nvcr.io/nim/nvidia/llama@sha256:{'0' * 64}"}, "give it as tag"),
        ({"serving_image": "nvcr.io/nim/nvidia/llama:1.13@sha256:12"}, "no digest"),
        ({"serving_image": "nvcr.io/nim/nvidia/nv-embedqa:1.0.1"}, "NIM 1.0 takes a model is not known"),
        ({"serving_image": "nvcr.io/nim/nvidia/future:3.0.0"}, "NIM 3.0 takes a model is not known"),
        ({"backend": "onnx", "serving_image": NIM_1}, "is a NIM: for backend=onnx"),
        ({"backend": "vllm", "serving_image": NIM_1}, "is a NIM: for backend=vllm"),
        ({"backend": "onnx"}, "backend=onnx has no image of its own"),
        ({"backend": "vllm", "serving_image": "vllm/vllm-openai:v0.11.0"}, "how vLLM 0.11 takes a model is not known"),
        ({"backend": "vllm", "serving_image": "nvcr.io/nvidia/vllm:25.12-py3"}, "how vLLM 25.12 takes a model"),
        ({"backend": "vllm", "serving_image": f"vllm/vllm-openai@sha256:{'0' * 64}"}, "version of vLLM decides"),
        ({"model_format": "tensorrt"}, "knows no file below tensorrt/"),
        ({"service_name": "a" * 37}, "letters too long"),
    ],
)
def test_what_cannot_work_is_refused(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rendered(bundle, **changes)


def test_vllm_is_started_as_a_pooling_server_of_the_checkpoint(bundle: Bundle) -> None:
    """Flags of vLLM 0.24's `vllm serve`."""
    release = rendered(bundle, backend="vllm", serving_gpu_count=2, vllm_arguments=["--trust-remote-code"])
    found = container(release)
    assert found["command"] == ["vllm", "serve"]
    assert found["args"][0] == "/mnt/models"
    pairs = dict(zip(found["args"][1:-1:2], found["args"][2:-1:2], strict=True))
    assert pairs == {
        "--served-model-name": "nemotron-embed", "--runner": "pooling", "--max-model-len": "64", "--port": "8000",
        "--tensor-parallel-size": "2", "--host": "0.0.0.0",
    }  # fmt: skip
    assert found["args"][-1] == "--trust-remote-code"
    assert found["startupProbe"]["httpGet"]["path"] == "/health"
    assert {environment(release)[name] for name in ("HOME", "HF_HOME", "VLLM_CACHE_ROOT")} == {"/cache"}
    assert part(release, "ServingRuntime")["spec"]["annotations"]["prometheus.kserve.io/path"] == "/metrics"


def test_usual_images_are_the_pinned_ones(bundle: Bundle) -> None:
    pins = read_pins()
    assert container(rendered(bundle))["image"] == pins["NIM_SERVER"]
    assert container(rendered(bundle, backend="vllm"))["image"] == pins["VLLM_SERVER"]


def test_a_nim_service_serves_from_a_claim(bundle: Bundle) -> None:
    config = DeployConfig(target="gitops", backend="nim-operator")
    release = render(
        config, bundle, select_contract(config), model_uri="pvc://models/embed/sha256-0", namespace="team-a"
    )
    spec = part(release, "NIMService")["spec"]
    assert spec["storage"]["pvc"] == {"name": "models", "volumeAccessMode": "ReadWriteMany"}
    assert {"name": "NIM_CUSTOM_MODEL", "value": "/model-store/embed/sha256-0/onnx"} in spec["env"]
    newer = config.model_copy(update={"serving_image": NIM_2})
    spec = part(render(newer, bundle, select_contract(newer), model_uri="pvc://models/c", namespace="t"), "NIMService")[
        "spec"
    ]
    assert spec["storage"]["pvc"]["subPath"] == "c"
    # The operator sets these itself.
    assert not {"NIM_MODEL_PATH", "NIM_ENGINE_MODEL_PATH"} & {entry["name"] for entry in spec["env"]}
    with pytest.raises(InputError, match="serves from a claim, not s3://b/m: set model_uri"):
        render(config, bundle, select_contract(config), model_uri="s3://b/m", namespace="t")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"query_prefix": ""}, "puts .*before queries and passages"),
        ({"query_max_length": 32}, "cuts all texts at one length"),
    ],
)
def test_a_model_that_a_nim_would_serve_otherwise_is_refused(
    tmp_path: Path, encoder: dict[str, Any], message: str
) -> None:
    how = EncoderConfig(base_model="b", **{"query_max_length": 64, "passage_max_length": 64} | encoder)
    other = read_bundle(write_bundle(tmp_path / "b", 1, encoder=how))
    with pytest.raises(InputError, match=message):
        rendered(other)
    rendered(other, backend="onnx", serving_image=ONNX)


def test_nodes_and_memory(bundle: Bundle) -> None:
    release = rendered(bundle)
    pod = part(release, "InferenceService")["spec"]["predictor"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["model"]["resources"]["limits"] == {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "1"}
    (shm,) = [v for v in part(release, "ServingRuntime")["spec"]["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    own = part(rendered(bundle, backend="onnx", serving_image=ONNX), "InferenceService")["spec"]["predictor"]
    assert "nodeSelector" not in own
    assert "nvidia.com/gpu" not in own["model"]["resources"]["limits"]


def test_a_release_is_named_by_all_that_its_pods_depend_on(bundle: Bundle, tmp_path: Path) -> None:
    first = rendered(bundle)
    assert first == rendered(bundle)
    assert re.fullmatch(r"nemotron-embed-r-[0-9a-f]{8}", first.name)
    names = {
        first.name,
        rendered(bundle, uri=f"{URI}1").name,
        rendered(bundle, served_model_name="other").name,
        rendered(bundle, serving_memory="40Gi").name,
        rendered(bundle, serving_node_selector={}).name,
        rendered(read_bundle(write_bundle(tmp_path / "b", 2))).name,
    }
    assert len(names) == 6
    # What only deploy itself needs starts no pod again.
    assert rendered(bundle, rollout_timeout=1, soak_seconds=0, keep_releases=3).name == first.name


def test_services_select_the_pods_of_their_release(bundle: Bundle) -> None:
    """KServe's label of pods: pkg/constants, GetRawServiceLabel(PredictorServiceName(name))."""
    release = rendered(bundle)
    label = {"app": f"isvc.{release.name}-predictor"}
    assert part(release, "Service")["spec"]["selector"] == label
    assert part(release, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == label
    alias = live_service(release)
    assert alias["metadata"]["name"] == "nemotron-embed-live"
    assert alias["spec"] == part(release, "Service")["spec"]


def test_gitops_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    where = write_bundle(tmp_path / "bundle", 1)
    config = DeployConfig(target="gitops", serving_namespace="team-a")
    for name in ("one", "two"):
        figures = run(
            config,
            deploy_bundle=where,
            exported_model_uri="minio://mlpipeline/v2/m",
            checkpoint_uri="",
            deployment=tmp_path / name,
        )
    assert figures["endpoint"] == "http://nemotron-embed-live.team-a.svc.cluster.local"
    assert figures["reindex_required"] is True
    files = {path.name: path.read_bytes() for path in (tmp_path / "one/manifests").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two/manifests").iterdir()}
    assert set(yaml.safe_load(files.pop("kustomization.yaml"))["resources"]) == set(files)
    objects = [yaml.safe_load(body) for body in files.values()]
    assert all(list(problems(item)) == [] for item in objects)
    (service,) = [item for item in objects if item["kind"] == "InferenceService"]
    # KServe has no minio://.
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://mlpipeline/v2/m"
    assert not (tmp_path / "one/verification.json").exists()


@pytest.mark.parametrize(
    ("changes", "uri", "message"),
    [
        ({}, "s3://b/m", "set serving_namespace"),
        ({"serving_namespace": "a"}, "/some/directory", "a cluster cannot read"),
        (
            {"serving_namespace": "a", "serving_image": NIM_2},
            "s3://b/m",
            "serves the artifact checkpoint: give its URI",
        ),
        ({"serving_namespace": "a", "model_uri": "ftp://x/y"}, "s3://b/m", "a cluster cannot read"),
    ],
)
def test_gitops_refuses(tmp_path: Path, changes: dict[str, Any], uri: str, message: str) -> None:
    where = write_bundle(tmp_path / "bundle", 1)
    with pytest.raises(InputError, match=message):
        run(
            DeployConfig(target="gitops", **changes),
            deploy_bundle=where,
            exported_model_uri=uri,
            checkpoint_uri="",
            deployment=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def checkpoint_bundle(directory: Path) -> Path:
    """As export writes it with enabled=false."""
    where = write_bundle(directory, 1)
    manifest = json.loads((where / "model-manifest.json").read_text())
    described = manifest | {"model_format": "checkpoint", "precision": "bf16", "opset": None, "onnxruntime": None}
    (where / "model-manifest.json").write_text(json.dumps(described))
    return where


def test_a_checkpoint_of_export_is_served_from_its_folder(tmp_path: Path) -> None:
    config = DeployConfig(target="gitops", serving_namespace="a", serving_image=NIM_2)
    where, out = checkpoint_bundle(tmp_path / "bundle"), tmp_path / "out"
    run(config, deploy_bundle=where, exported_model_uri="s3://b/m", checkpoint_uri="", deployment=out)
    objects = [yaml.safe_load(path.read_bytes()) for path in (out / "manifests").iterdir()]
    (service,) = [item for item in objects if item["kind"] == "InferenceService"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://b/m/checkpoint"
    with pytest.raises(InputError, match=r"export\.enabled"):
        run(
            config.model_copy(update={"serving_image": NIM_1}),
            deploy_bundle=where,
            exported_model_uri="s3://b/m",
            checkpoint_uri="",
            deployment=tmp_path / "none",
        )
