"""Settings of deploy: what serves, and how its pods look."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from components.core.settings import Settings, setting

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$"
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OPTIONAL_LABEL = rf"{LABEL}|^$"


class ModelService(Settings):
    """What is served, and where."""

    target: Literal["kserve", "gitops", "local"] = setting(
        "kserve",
        "Where to serve: `kserve` in the cluster; `gitops` writes the objects, into a Git repository when one is "
        "named, for Argo CD or Flux to apply; `local` starts the ONNX server on this machine",
    )
    served_model_name: str = setting(
        "nemotron-embed", "Name that clients give as `model`", form=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
    )
    serving_namespace: str = setting(
        "", "Namespace that serves the model; empty is the one in which deploy runs", form=True, pattern=OPTIONAL_LABEL
    )
    service_name: str = setting(
        "nemotron-embed",
        "Name of the service; clients reach it at `<service_name>-live`",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=37,
    )
    backend: Literal["nim", "vllm", "onnx", "nim-operator"] = setting(
        "nim",
        "What serves the model: a NIM; vLLM, which takes the checkpoint; this project's ONNX Runtime server, which "
        "needs no licence; or a NIMService of NVIDIA's operator, which target=gitops writes",
        form=True,
    )
    serving_image: str = setting(
        "",
        "Serving image, with its version as tag; empty is the backend's usual one, as in images/pins.env. "
        "For backend=onnx this project's image `server`",
        form=True,
        pattern=r"^$|^[^\s{}]+$",
    )
    release_prefix: str = setting(
        "",
        "`s3://` or `gs://` prefix to which each release is copied before it is served, as "
        "PREFIX/sha256-DIGEST; empty serves the model where it is",
        form=True,
        pattern=r"^$|^(s3|gs)://[^\s{}]+$",
    )
    model_uri: str = setting(
        "",
        "Serve the model from here instead (`s3://`, `gs://`, `pvc://`, `oci://`, `hf://`): the same files",
        pattern=r"^$|^[^\s{}]+$",
    )
    model_format: Literal["onnx", "tensorrt"] = setting(
        "onnx",
        "Which part of exported_model a NIM 1.x serves; a TensorRT plan runs only on the GPU for which it was built",
    )

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.backend == "nim-operator" and self.target != "gitops":
            raise ValueError("backend=nim-operator needs target=gitops")
        return self


class ServingPods(Settings):
    """Where the pods of a release run, what they get, and who reaches them."""

    serving_node_selector: dict[str, str] = setting(
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "Labels of the GPU nodes that serve; `{}` takes any node, as does a server without GPU",
        form=True,
    )
    serving_tolerations: list[dict[str, Any]] = setting(
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}], "Taints that serving pods tolerate"
    )
    serving_gpu_count: int | None = setting(
        None, "GPUs of each pod; null is 1, and 0 for backend=onnx; vLLM spreads the model over them", ge=0
    )
    serving_gpu_resource: str = setting(
        "nvidia.com/gpu", "Name of the GPU resource, such as `nvidia.com/mig-1g.20gb`", pattern=r"^[a-z0-9.-]+/[\w.-]+$"
    )
    serving_cpu: str = setting("4", "CPU cores of each serving pod", pattern=QUANTITY)
    serving_memory: str = setting("32Gi", "Memory of each serving pod, /dev/shm included", pattern=QUANTITY)
    shm_size: str = setting("8Gi", "Size of /dev/shm of a NIM or vLLM", pattern=QUANTITY)
    serving_replicas: int = setting(1, "Serving pods of a release; the smallest number if it is scaled", ge=1)
    serving_service_account: str = setting(
        "",
        "ServiceAccount of serving pods; it carries the identity that reads the model's storage",
        pattern=OPTIONAL_LABEL,
    )
    storage_secret_name: str = setting(
        "",
        "Secret with the credentials of the model's storage, as KServe documents it: deploy creates a "
        "ServiceAccount with it, if serving_service_account names none",
        pattern=OPTIONAL_LABEL,
    )
    serving_run_as_user: int | None = setting(
        None, "User id of serving pods; null is the image's usual one (NIM and vLLM 1000, ONNX server 10001)", gt=0
    )
    serving_priority_class: str = setting("", "PriorityClass of serving pods", pattern=OPTIONAL_LABEL)
    image_pull_secret_name: str = setting(
        "ngc-pull", "Secret with which the image is pulled; empty for none", pattern=OPTIONAL_LABEL
    )
    ngc_secret_name: str = setting(
        "ngc-api", "Secret with the key NGC_API_KEY, which a NIM reads if it exists", pattern=OPTIONAL_LABEL
    )
    vllm_arguments: list[str] = setting(
        [], "Further arguments of `vllm serve`, such as `--trust-remote-code` for a checkpoint with its own code"
    )
    network_policy_namespaces: list[str] | None = setting(
        None,
        "Further namespaces whose pods may reach a release, such as the gateway's and Prometheus's; null "
        "creates no NetworkPolicy",
    )
    autoscaler: Literal["none", "hpa", "keda"] = setting(
        "none", "What scales a release up to serving_max_replicas: `hpa` by CPU, `keda` by a query to Prometheus"
    )
    serving_max_replicas: int | None = setting(None, "Largest number of serving pods of a release that is scaled", ge=2)
    autoscaler_target: float = setting(
        70.0, "Target of the autoscaler: percent of CPU (`hpa`), or keda_query's value per pod (`keda`)", gt=0
    )
    keda_prometheus_url: str = setting("", "URL of the Prometheus that KEDA queries", pattern=r"^$|^https?://[^\s{}]+$")
    keda_query: str = setting(
        "",
        "PromQL query for KEDA, such as the number of waiting requests",
        pattern=r"^[^{}\n]*(\{[^{}\n]*\}[^{}\n]*)*$",
    )

    @property
    def is_scaled(self) -> bool:
        """True when something scales the release."""
        return self.autoscaler != "none"

    @model_validator(mode="after")
    def _check_autoscaler(self) -> Self:
        if self.is_scaled != bool(self.serving_max_replicas):
            raise ValueError("autoscaler and serving_max_replicas need each other")
        if self.is_scaled and self.serving_replicas >= (self.serving_max_replicas or 0):
            raise ValueError("serving_max_replicas must be more than serving_replicas")
        if self.autoscaler == "keda" and not (self.keda_prometheus_url and self.keda_query):
            raise ValueError("autoscaler=keda needs keda_prometheus_url and keda_query")
        return self
