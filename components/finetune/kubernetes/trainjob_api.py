"""TrainJobs in the Kubernetes API: a few verbs, and why their pods do not run."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from typing import Literal, NamedTuple

from components.core.errors import InputError, Transient
from components.core.kubernetes.client import KubernetesClient
from components.core.kubernetes.connection import connect_api, is_in_pod
from components.core.kubernetes.errors import ApiUser, WriteConflict
from components.core.kubernetes.resource_kinds import Object
from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes.trainjob_manifest import MANAGER, PodSettings

_log = logging.getLogger(__name__)
# Reasons of a waiting container that time does not cure.
_PERMANENT_REASONS = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"}
_STARTING_REASONS = {None, "ContainerCreating", "PodInitializing"}
_DELETION_SECONDS = 60.0
_FINETUNE = ApiUser(
    stage="finetune",
    need="trainer = trainjob",
    without_cluster="set trainer=here",
    namespace_setting="trainjob_namespace",
    manifest="manifests/trainjob/role.yaml",
    field_manager=MANAGER,
)


class JobState(NamedTuple):
    """How far a job is, and the reason in the job's own words."""

    phase: Literal["Complete", "Failed", "Running"]
    reason: str = ""


class TrainJobs:
    """TrainJobs of one namespace: that of the pod or the kubeconfig's context, unless it is given."""

    def __init__(self, namespace: str | None) -> None:
        api, own_namespace = connect_api(_FINETUNE)
        self.namespace = namespace or own_namespace
        self._client = KubernetesClient(api, self.namespace, _FINETUNE)

    def read_pod_settings(self, config: FinetuneConfig) -> PodSettings:
        """Return what the job's pods take over from the pod that this runs in.

        Outside of a cluster that is the image ``trainjob_image`` alone.
        """
        pod = self._read_own_pod()
        if pod is None:
            if not config.trainjob_image:
                raise InputError(
                    "trainer = trainjob outside of a pod: set trainjob_image to the image of the gpu stages"
                )
            return PodSettings(config.trainjob_image)
        spec = pod["spec"]
        main = next((c for c in spec["containers"] if c["name"] == "main"), spec["containers"][0])
        return PodSettings(
            image=config.trainjob_image or main["image"],
            service_account=spec.get("serviceAccountName"),
            node_selector=spec.get("nodeSelector", {}),
            tolerations=[t for t in spec.get("tolerations", []) if not _is_of_every_pod(t)],
            # Secrets stay references; what KFP sets for its own launcher is none of the job's business.
            env=[variable for variable in main.get("env", []) if "secretKeyRef" in variable.get("valueFrom", {})],
        )

    def ensure(self, job: Object) -> None:
        """Create ``job`` unless it is there; one that failed is replaced."""
        name = job["metadata"]["name"]
        if self._get(name) is not None:
            if self.read_state(name).phase != "Failed":
                _log.info("TrainJob %s is there already: watching it", name)
                return
            self.delete(name)
            self._wait_until_deleted(name)
        try:
            self._client.create(job)
        except WriteConflict:
            # Another attempt, or this one: an answer that was lost on its way may have created it.
            _log.info("TrainJob %s is there already: watching it", name)
        else:
            _log.info("TrainJob %s/%s created", self.namespace, name)

    def read_state(self, name: str) -> JobState:
        """Return the state of the job. Raises Transient when it is gone."""
        job = self._get(name)
        if job is None:
            raise Transient(f"TrainJob {name} is gone: somebody deleted it; run again to continue")
        for condition in job.get("status", {}).get("conditions", []):
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                return JobState(condition["type"], condition.get("message") or condition.get("reason", ""))
        return JobState("Running")

    def delete(self, name: str) -> None:
        """Delete the job, if there is one."""
        self._client.delete("TrainJob", name)

    def diagnose(self, name: str) -> str:
        """Return what keeps pods from running, or ended them; empty when all run."""
        problems: list[str] = []
        for pod in self._list_pods(name):
            pod_name, status = pod["metadata"]["name"], pod.get("status", {})
            for condition in status.get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    problems.append(f"{pod_name}: {condition.get('reason')}: {condition.get('message')}")
            for container in status.get("containerStatuses", []):
                problems += [f"{pod_name}: {problem}" for problem in _container_problems(container["state"])]
        return "; ".join(dict.fromkeys(problems))[:600]

    def is_stuck(self, name: str) -> bool:
        """Return whether a pod waits for something that does not come by itself."""
        statuses = [
            status for pod in self._list_pods(name) for status in pod.get("status", {}).get("containerStatuses", [])
        ]
        return any(status["state"].get("waiting", {}).get("reason") in _PERMANENT_REASONS for status in statuses)

    def read_last_log_line(self, name: str) -> str:
        """Return the last line that the first pod logged; empty when there is none."""
        for pod in self._list_pods(name):
            if pod.get("status", {}).get("phase") == "Running":
                # The pod may be gone by now, or its container start again: the next call returns more.
                with suppress(InputError):
                    return self._client.read_log(pod["metadata"]["name"], "node", lines=1).strip()
        return ""

    def _list_pods(self, name: str) -> list[Object]:
        pods = self._client.list("Pod", labels=f"jobset.sigs.k8s.io/jobset-name={name}")
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def _read_own_pod(self) -> Object | None:
        return self._client.get("Pod", os.environ["HOSTNAME"]) if is_in_pod() else None

    def _get(self, name: str) -> Object | None:
        return self._client.get("TrainJob", name)

    def _wait_until_deleted(self, name: str) -> None:
        deadline = time.monotonic() + _DELETION_SECONDS
        while time.monotonic() < deadline:
            if self._get(name) is None:
                return
            time.sleep(0.5)
        raise Transient(f"TrainJob {name} failed before and is still being deleted: run again")


def _is_of_every_pod(toleration: Object) -> bool:
    """Kubernetes itself adds these."""
    return str(toleration.get("key", "")).startswith("node.kubernetes.io/")


def _container_problems(state: Object) -> list[str]:
    problems: list[str] = []
    if (waiting := state.get("waiting")) and waiting.get("reason") not in _STARTING_REASONS:
        problems.append(f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": "))
    if (terminated := state.get("terminated")) and terminated.get("exitCode"):
        problems.append(f"{terminated.get('reason')}, exit code {terminated['exitCode']}")
    return problems
