"""A TrainJob of Kubeflow Trainer as a Kubernetes object."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from components import __version__
from components.core.kubernetes.pod_security import restricted_container_security, restricted_pod_security
from components.core.kubernetes.resource_kinds import KINDS, Object
from components.finetune.component import FinetuneConfig

MANAGER = "nemotron-embed-kubeflow"


@dataclass(frozen=True)
class PodSettings:
    """What the job's pods take over from the pod that finetune runs in: image, identity, nodes, secrets."""

    image: str
    service_account: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Object] = field(default_factory=list)
    env: list[Object] = field(default_factory=list)


def compute_job_name(config: FinetuneConfig, training_data: Path) -> str:
    """Return a name that follows from settings, data and release, so that a retry finds the job it started before."""
    digest = hashlib.sha256(json.dumps([__version__, config.model_dump(mode="json")], sort_keys=True).encode())
    for path in sorted(p for p in training_data.rglob("*") if p.is_file()):
        digest.update(path.relative_to(training_data).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"finetune-{digest.hexdigest()[:12]}"


def render_trainjob(name: str, config: FinetuneConfig, uri: str, pod_settings: PodSettings) -> Object:
    """Return the TrainJob: torchrun on each node starts ``worker`` processes that train on what lies at ``uri``.

    torchrun reads the PET_ variables that the training runtime sets.
    """
    trainjob, runtime = KINDS["TrainJob"], config.trainjob_runtime
    resources = {"nvidia.com/gpu": str(config.gpus_per_node)}
    return {
        "apiVersion": trainjob.api_version,
        "kind": trainjob.kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
        "spec": {
            "runtimeRef": {"apiGroup": trainjob.group, "kind": "ClusterTrainingRuntime", "name": runtime},
            "trainer": {
                "image": pod_settings.image,
                "command": ["python", "-m", "torch.distributed.run"],
                "args": ["-m", "components.finetune.kubernetes.worker", uri],
                "env": pod_settings.env,
                "numNodes": config.num_nodes,
                "numProcPerNode": config.gpus_per_node,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [_runtime_patch(pod_settings)],
        },
    }


def _runtime_patch(pod_settings: PodSettings) -> Object:
    """The runtime's pods, with /dev/shm, identity and nodes of ours, and security for the restricted standard.

    No user is named: the image's is not root.
    """
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    pod: Object = {
        "containers": [{"name": "node", "volumeMounts": mounts, "securityContext": restricted_container_security()}],
        "securityContext": restricted_pod_security(),
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}],
    }
    if pod_settings.service_account:
        pod["serviceAccountName"] = pod_settings.service_account
    if pod_settings.node_selector:
        pod["nodeSelector"] = pod_settings.node_selector
    if pod_settings.tolerations:
        pod["tolerations"] = pod_settings.tolerations
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
