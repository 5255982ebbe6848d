"""TrainJobs in the Kubernetes API: a few verbs, and why their pods do not run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config import ConfigException

from components.core.errors import ActionNeeded, InputError, Transient
from components.finetune.component import FinetuneConfig

_log = logging.getLogger(__name__)
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
Object = dict[str, Any]
# Reasons of a waiting container that time does not cure.
_HOPELESS = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"}
_GONE_SECONDS = 60.0
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Place:
    """What the job's pods take over from the pod that finetune runs in: image, identity, nodes, secrets."""

    image: str
    service_account: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[Object] = field(default_factory=list)
    env: list[Object] = field(default_factory=list)


class Jobs:
    """TrainJobs of one namespace: that of the pod or the kubeconfig's context, unless it is given."""

    def __init__(self, namespace: str | None) -> None:
        settings, own = _connection()
        settings.retries = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504])
        api = client.ApiClient(settings)
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self.namespace = namespace or own

    def place(self, settings: FinetuneConfig) -> Place:
        """From the pod that this runs in; outside of a cluster only ``trainjob_image`` is known."""
        pod = self._own_pod()
        if pod is None:
            if not settings.trainjob_image:
                raise InputError(
                    "trainer = trainjob outside of a pod: set trainjob_image to the image of the gpu stages"
                )
            return Place(settings.trainjob_image)
        main = next((c for c in pod.spec.containers if c.name == "main"), pod.spec.containers[0])
        wire = self._core.api_client.sanitize_for_serialization
        # Secrets stay references; what KFP sets for its own launcher is none of the job's business.
        secrets = [
            wire(variable) for variable in main.env or [] if variable.value_from and variable.value_from.secret_key_ref
        ]
        return Place(
            image=settings.trainjob_image or main.image,
            service_account=pod.spec.service_account_name,
            node_selector=pod.spec.node_selector or {},
            tolerations=[
                wire(t) for t in pod.spec.tolerations or [] if not (t.key or "").startswith("node.kubernetes.io/")
            ],
            env=secrets,
        )

    def ensure(self, job: Object) -> None:
        """Create ``job`` unless it is there; one that failed is replaced."""
        name = job["metadata"]["name"]
        if self._get(name) is not None:
            if self.state(name)[0] != "Failed":
                _log.info("TrainJob %s is there already: watching it", name)
                return
            self.delete(name)
            self._until_gone(name)
        with _explained(f"create TrainJob {name}"):
            self._custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, job)
        _log.info("TrainJob %s/%s created", self.namespace, name)

    def state(self, name: str) -> tuple[str, str]:
        """``Complete``, ``Failed`` or ``Running``, and the reason in the job's own words."""
        job = self._get(name)
        if job is None:
            raise Transient(f"TrainJob {name} is gone: somebody deleted it; run again to continue")
        for condition in job.get("status", {}).get("conditions", []):
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                return condition["type"], condition.get("message") or condition.get("reason", "")
        return "Running", ""

    def delete(self, name: str) -> None:
        """That there is none is no error."""
        try:
            with _explained(f"delete TrainJob {name}"):
                self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        except _Missing:
            return

    def diagnosis(self, name: str) -> str:
        """What keeps pods from running, or ended them; empty when all run."""
        found: list[str] = []
        for pod in self._pods(name):
            for condition in pod.status.conditions or []:
                if condition.type == "PodScheduled" and condition.status == "False":
                    found.append(f"{pod.metadata.name}: {condition.reason}: {condition.message}")
            for container in pod.status.container_statuses or []:
                state = container.state
                if state.waiting and state.waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
                    found.append(
                        f"{pod.metadata.name}: {state.waiting.reason}: {state.waiting.message or ''}".rstrip(": ")
                    )
                if state.terminated and state.terminated.exit_code:
                    ended = state.terminated
                    found.append(f"{pod.metadata.name}: {ended.reason}, exit code {ended.exit_code}")
        return "; ".join(dict.fromkeys(found))[:600]

    def hopeless(self, name: str) -> bool:
        """Whether a pod waits for what does not come by itself."""
        statuses = [status for pod in self._pods(name) for status in pod.status.container_statuses or []]
        return any(status.state.waiting and status.state.waiting.reason in _HOPELESS for status in statuses)

    def last_line(self, name: str) -> str:
        """What the first pod said last."""
        for pod in self._pods(name):
            if pod.status.phase == "Running":
                # Gone by now, or its container starts again: the next look tells more.
                with suppress(InputError), _explained("read the log"):
                    text = self._core.read_namespaced_pod_log(
                        pod.metadata.name, self.namespace, container="node", tail_lines=1
                    )
                    return text.strip()
        return ""

    def _pods(self, name: str) -> list[Any]:
        with _explained("list pods"):
            listed = self._core.list_namespaced_pod(
                self.namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}"
            )
        return sorted(listed.items, key=lambda pod: pod.metadata.name)

    def _own_pod(self) -> Any | None:
        if not _NAMESPACE_FILE.is_file():
            return None
        with _explained("get the own pod"):
            return self._core.read_namespaced_pod(os.environ["HOSTNAME"], self.namespace)

    def _get(self, name: str) -> Object | None:
        try:
            with _explained(f"get TrainJob {name}"):
                return self._custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)
        except _Missing:
            return None

    def _until_gone(self, name: str) -> None:
        until = time.monotonic() + _GONE_SECONDS
        while time.monotonic() < until:
            if self._get(name) is None:
                return
            time.sleep(0.5)
        raise Transient(f"TrainJob {name} failed before and is still being deleted: run again")


class _Missing(InputError):
    """There is no such object."""


def _connection() -> tuple[client.Configuration, str]:
    """The cluster around this pod, or the kubeconfig's; and the own namespace."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
        return settings, _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError):
        file = os.environ.get("KUBECONFIG") or None
    try:
        config.load_kube_config(file, client_configuration=settings)
        return settings, config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
    except (ConfigException, OSError) as error:
        raise InputError(
            f"trainer = trainjob needs a cluster, and there is neither a pod's service account nor a usable kubeconfig "
            f"({' '.join(str(error).split())}): set trainer=here"
        ) from None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """The Kubernetes API's errors as what the user can do about them."""
    try:
        yield
    except client.ApiException as error:
        told = _message(error)
        if error.status == 404 and "page not found" in told:
            raise InputError(
                "the cluster does not know TrainJobs: install Kubeflow Trainer 2, or set trainer=here"
            ) from None
        if error.status == 404:
            raise _Missing(f"{what}: {told}") from None
        if error.status in (401, 403):
            raise ActionNeeded(f"finetune may not {what} ({told}): see manifests/trainjob/role.yaml") from None
        if error.status in (400, 422):
            raise InputError(f"{what}: the cluster finds it invalid: {told}") from None
        raise Transient(f"{what}: {error.status} {told}: run again") from None
    except urllib3.exceptions.HTTPError as error:
        raise Transient(f"{what}: the Kubernetes API does not answer ({error}): run again") from None


def _message(error: client.ApiException) -> str:
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or error.reason)
    with suppress(ValueError, AttributeError):
        text = json.loads(text).get("message", text)
    return " ".join(text.split())[:400]
