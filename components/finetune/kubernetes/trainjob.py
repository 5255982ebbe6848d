"""Training on several nodes: a TrainJob of Kubeflow Trainer, watched to its end."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from components import __version__
from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.store import Store, open_store
from components.core.store.errors import translate_errors
from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes.handover import REQUEST, RESULT, receive, received_error, send
from components.finetune.kubernetes.jobs import GROUP, VERSION, Jobs, Object, Place

_log = logging.getLogger(__name__)
POLL_SECONDS = 10.0
# How long a registry may have a bad moment.
_PATIENCE_SECONDS = 300.0
# What namespaces that enforce the restricted Pod Security Standard ask for. No user is named: the image's is not root.
_POD_SECURITY: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
_CONTAINER_SECURITY: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def job_name(settings: FinetuneConfig, training_data: Path) -> str:
    """The same for the same settings, data and release: a retry finds the job that it started before."""
    found = hashlib.sha256(json.dumps([__version__, settings.model_dump(mode="json")], sort_keys=True).encode())
    for path in sorted(p for p in training_data.rglob("*") if p.is_file()):
        found.update(path.relative_to(training_data).as_posix().encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return f"finetune-{found.hexdigest()[:12]}"


def render(name: str, settings: FinetuneConfig, uri: str, place: Place) -> Object:
    """The TrainJob: our image under torchrun on each node, as the runtime's PET_ variables tell it."""
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    pod: Object = {
        "containers": [{"name": "node", "volumeMounts": mounts, "securityContext": _CONTAINER_SECURITY}],
        "securityContext": _POD_SECURITY,
    }
    pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}]
    if place.service_account:
        pod["serviceAccountName"] = place.service_account
    if place.node_selector:
        pod["nodeSelector"] = place.node_selector
    if place.tolerations:
        pod["tolerations"] = place.tolerations
    resources = {"nvidia.com/gpu": str(settings.gpus_per_node)}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "nemotron-embed-kubeflow"}},
        "spec": {
            "runtimeRef": {
                "apiGroup": GROUP,
                "kind": "ClusterTrainingRuntime",
                "name": settings.trainjob_runtime,
            },
            "trainer": {
                "image": place.image,
                "command": ["python", "-m", "torch.distributed.run"],
                "args": ["-m", "components.finetune.kubernetes.node", uri],
                "env": place.env,
                "numNodes": settings.num_nodes,
                "numProcPerNode": settings.gpus_per_node,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [
                {
                    "manager": "nemotron-embed-kubeflow",
                    "trainingRuntimeSpec": {
                        "template": {
                            "spec": {
                                "replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
                            }
                        }
                    },
                }
            ],
        },
    }


def run(settings: FinetuneConfig, *, training_data: Path, checkpoint: Path, training_report: Path) -> dict[str, Any]:
    """Train in a TrainJob; write ``checkpoint`` and ``training_report``, return the figures.

    A job of the same name is taken over, a failed one replaced, a finished one's result used again. Raises what the
    training raised; ActionNeeded for missing rights and pods that cannot start, Transient when the job was lost.
    """
    if not settings.checkpoint_uri or "://" not in settings.checkpoint_uri:
        raise InputError(
            "trainer = trainjob needs checkpoint_uri = s3://... or gs://...: its nodes get the data from there"
        )
    name = job_name(settings, training_data)
    uri = f"{settings.checkpoint_uri.rstrip('/')}/jobs/{name}"
    store, where = open_store(uri, setting="checkpoint_uri"), f"checkpoint_uri = {settings.checkpoint_uri}"
    jobs = Jobs(settings.trainjob_namespace)
    with translate_errors(where):
        done = _has_result(store)
    if not done:
        # In the job every process is started by torchrun.
        inside = settings.model_copy(update={"trainer": "here"}).model_dump(mode="json")
        with translate_errors(where):
            send(store, "input", REQUEST, {"training_data": training_data}, {"settings": inside})
        jobs.ensure(render(name, settings, uri, jobs.place(settings)))
        _watch(jobs, name, store)
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as received:
        with translate_errors(where):
            about = receive(store, "output", RESULT, Path(received))
        if about is None:
            raise StageError(f"TrainJob {name} is complete and left no result at {uri}: look at its pods' logs")
        (Path(received) / "checkpoint").rename(checkpoint)
        shutil.move(Path(received) / "training_report", training_report)
    jobs.delete(name)
    return about["figures"]


def _has_result(store: Store) -> bool:
    try:
        store.read(RESULT)
    except FileNotFoundError:
        return False
    return True


def _watch(jobs: Jobs, name: str, store: Store) -> None:
    """Until the job is complete; raises what stopped it."""
    said, stuck_since = "", None
    while True:
        state, why = jobs.state(name)
        if state == "Complete":
            return
        if state == "Failed":
            with translate_errors(f"TrainJob {name} failed ({why}), and what stopped it cannot be read"):
                error = received_error(store)
            error = error or Transient(f"TrainJob {name} failed ({why}; {jobs.diagnosis(name)}): run again")
            jobs.delete(name)
            raise error
        seen = jobs.diagnosis(name) or jobs.last_line(name)
        if seen and seen != said:
            _log.info("TrainJob %s: %s", name, seen)
            said = seen
        stuck_since = (stuck_since or time.monotonic()) if jobs.hopeless(name) else None
        if stuck_since and time.monotonic() - stuck_since > _PATIENCE_SECONDS:
            raise ActionNeeded(f"TrainJob {name} cannot start: {jobs.diagnosis(name)}")
        time.sleep(POLL_SECONDS)
