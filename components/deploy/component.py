"""deploy: serve the exported model and prove that it is the one that answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from components.core.errors import InputError
from components.core.settings import Settings, setting
from components.core.stage import Node, Stage, s3_secrets

STATE_DIR = "~/.local/state/nemotron-embed"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"
_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class DeployConfig(Settings):
    """Settings of deploy. Names and defaults are the recipe's where it has them."""

    target: Literal["kserve", "gitops", "local"] = setting(
        "kserve",
        "Where to serve: `kserve` in the cluster; `gitops` only writes the objects, for Argo CD or Flux to apply; "
        "`local` starts the ONNX server on this machine",
    )
    served_model_name: str = setting(
        "nemotron-embed", "Name that clients give as `model`", form=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
    )
    health_check_timeout: float = setting(120.0, "Seconds until the local service must be ready", gt=0)
    # The cluster.
    serving_namespace: str = setting(
        "", "Namespace that serves the model; empty is the one that deploy runs in", form=True, pattern=rf"{_LABEL}|^$"
    )
    service_name: str = setting(
        "nemotron-embed",
        "Name of the service; clients reach it at `<service_name>-live`",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=37,
    )
    backend: Literal["nim", "onnx"] = setting(
        "nim", "What serves the model: a NIM, or this project's ONNX Runtime server, which needs no licence", form=True
    )
    serving_image: str = setting(
        "nvcr.io/nim/nvidia/llama-nemotron-embed-1b-v2:1.13.0",
        "Image that serves: a NIM with its version as tag, or for backend=onnx the one that images/server builds",
        form=True,
        pattern=r"^[^\s{}]+$",
    )
    release_prefix: str = setting(
        "",
        "`s3://` or `gs://` prefix that each release is copied to before it is served, as PREFIX/sha256-DIGEST; empty "
        "serves exported_model where it lies",
        form=True,
        pattern=r"^$|^(s3|gs)://[^\s{}]+$",
    )
    model_uri: str = setting(
        "",
        "Serve the model from here instead (`s3://`, `gs://`, `pvc://`, `oci://`, `hf://`): the same files",
        pattern=r"^$|^[^\s{}]+$",
    )
    serving_node_selector: dict[str, str] = setting(
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "Labels of the GPU nodes that serve; `{}` takes any node, as does a server without GPU",
        form=True,
    )
    serving_tolerations: list[dict[str, Any]] = setting(
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}], "Taints that serving pods tolerate"
    )
    serving_gpu_count: int | None = setting(None, "GPUs of each pod; null is 1 for a NIM and 0 for backend=onnx", ge=0)
    serving_cpu: str = setting("4", "CPU cores of each serving pod", pattern=_QUANTITY)
    serving_memory: str = setting("32Gi", "Memory of each serving pod, /dev/shm included", pattern=_QUANTITY)
    shm_size: str = setting("8Gi", "Size of /dev/shm of a NIM", pattern=_QUANTITY)
    serving_replicas: int = setting(1, "Serving pods of a release", ge=1)
    serving_service_account: str = setting(
        "",
        "ServiceAccount of serving pods; it carries the credentials for the model's storage",
        pattern=rf"{_LABEL}|^$",
    )
    serving_run_as_user: int | None = setting(
        None, "User id of serving pods; null is the image's usual one (NIM 1000, ONNX server 10001)", gt=0
    )
    image_pull_secret_name: str = setting(
        "ngc-pull", "Secret that pulls the image; empty for none", pattern=rf"{_LABEL}|^$"
    )
    ngc_secret_name: str = setting(
        "ngc-api", "Secret with the key NGC_API_KEY, which a NIM reads when it is there", pattern=rf"{_LABEL}|^$"
    )
    strategy: Literal["bluegreen", "recreate"] = setting(
        "bluegreen",
        "`bluegreen` starts a release beside the old one; `recreate` stops the old one first, for clusters without a "
        "spare GPU: until the new one is verified, or the old one runs again, nobody answers",
    )
    rollout_timeout: float = setting(1800.0, "Seconds until a release must be ready in the cluster", gt=0)
    schedule_timeout: float = setting(600.0, "Seconds that a pod may wait for a node", ge=0)
    failure_patience: float = setting(120.0, "Seconds that an image may fail to be pulled, or a pod to be made", ge=0)
    health_check_interval: float = setting(5.0, "Seconds between two looks at a release that is starting", gt=0)
    soak_seconds: float = setting(60.0, "Seconds that a release is watched after the switch, before it counts", ge=0)
    keep_releases: int = setting(1, "Earlier releases that go on running, ready for a roll-back", ge=0)
    kserve_mode: Literal["Standard", "RawDeployment"] = setting(
        "Standard", "KServe's word for plain Deployments: `RawDeployment` before 0.16 and on OpenShift AI"
    )
    cluster_domain: str = setting("cluster.local", "DNS domain of the cluster", min_length=1)
    # This machine.
    host: str = setting("127.0.0.1", "Address that the local server listens on")
    host_port: int = setting(8000, "Port of the local service; 0 takes a free one", ge=0, le=65535)
    detach: bool = setting(True, "Leave the local server running when the stage ends")
    state_dir: str = setting(STATE_DIR, "Where the local service keeps its releases, log and process id", min_length=1)


def check_on_this_machine(config: DeployConfig) -> None:
    """Raises InputError for a target that a run on this machine cannot reach, before the first stage has cost anything.

    The exported model will be a directory of this machine, which no cluster reads.
    """
    if config.target != "local" and not (config.release_prefix or config.model_uri):
        raise InputError(
            f"target={config.target} serves from storage that the cluster reads, and exported_model will be a "
            f"directory here: set release_prefix, or deploy.target=local to serve on this machine"
        )
    if config.target == "kserve" and not _knows_a_cluster():
        raise InputError(
            "target=kserve needs a cluster, and there is neither a kubeconfig nor a pod's service account: "
            "set deploy.target=local to serve on this machine"
        )


def _knows_a_cluster() -> bool:
    configs = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(path).is_file() for path in configs.split(os.pathsep))


STAGE = Stage(
    name="deploy",
    summary="Serve the exported model and verify it",
    config=DeployConfig,
    inputs=("deploy_bundle",),
    optional_inputs=("past_runs",),
    by_uri=("exported_model",),
    outputs=("deployment",),
    results={"endpoint": str, "previous_endpoint": str, "reindex_required": bool},
    image="cpu",
    node=Node(cpu="2", memory="4Gi"),
    # For release_prefix and the history only; workload identity needs none.
    secrets=s3_secrets("models-s3"),
    cache=False,
    retries=0,
    check_on_this_machine=check_on_this_machine,
)
