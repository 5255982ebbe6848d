"""KServe's controller, the scheduler and the kubelet: what becomes of an InferenceService, told for each model."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.deploy.labels import MODEL_DIGEST
from tests.deploy.cluster.store import Object, Store


@dataclass
class Fate:
    """What becomes of a release. Its age is how often its InferenceService was looked at.

    ``pod``, ``service`` and ``conditions`` are the status of pod, InferenceService and Deployment until it is ready;
    ``stale`` lets KServe call it ready from the first moment on, for pods that are not of this release.
    """

    ready_after: float = 2
    pod: Object = field(default_factory=dict)
    service: Object = field(default_factory=dict)
    conditions: list[Object] = field(default_factory=list)
    log: str = ""
    event: str = ""
    has_deployment: bool = True
    stale: bool = False
    vanishes: bool = False


NEVER = math.inf
RUNNING = {"phase": "Running", "containerStatuses": [{"name": "kserve-container", "state": {"running": {}}}]}


def waiting(reason: str, message: str = "", *, init: bool = False, **more: Any) -> Object:
    """Status of a pod of which a container waits."""
    state = {"state": {"waiting": {"reason": reason, "message": message}}, **more}
    return _containers(state, init)


def crashed(code: int, restarts: int, reason: str = "Error", *, init: bool = False) -> Object:
    """Status of a pod of which a container ended ``restarts`` times."""
    ended = {"terminated": {"exitCode": code, "reason": reason}}
    state = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended, "restartCount": restarts}
    return _containers(state, init)


def unschedulable(message: str) -> Object:
    """Status of a pod that no node takes."""
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def _containers(state: Object, init: bool) -> Object:
    name = "storage-initializer" if init else "kserve-container"
    status = {"name": name, "image": "registry/image:1", "restartCount": 0, **state}
    return {"initContainerStatuses" if init else "containerStatuses": [status]}


class Controller:
    """Acts on the InferenceServices in ``store``. ``fates`` are by model digest; of others ``consequence`` says what
    becomes of them. ``starts`` counts pods by release.

    ``gpus`` limits how many releases can have pods; those of ``holders`` do. ``finalizing`` is how often a deleted
    InferenceService is seen before its finalizers are done.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fates: dict[str, Fate] = {}
        self.consequence: Callable[[Object], Fate | None] = lambda _: None
        self.ages: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self.specs: dict[str, Object] = {}
        self.gpus = 1_000
        self.finalizing = 0
        self.holders: set[str] = set()
        self.well: set[str] = set()

    def fate(self, service: Object) -> Fate:
        annotations = service["spec"]["predictor"].get("annotations", {})
        told = self.fates.get(annotations.get(MODEL_DIGEST, ""))
        # What befalls pods that start does not end those that run.
        well = service["metadata"]["name"] in self.well
        return told or (None if well else self.consequence(service)) or Fate()

    def looked_at(self, name: str) -> None:
        """Time passes."""
        service = self._store.objects.get(("inferenceservices", name))
        if service is None:
            return
        self.ages[name] += 1
        if "deletionTimestamp" in service["metadata"]:
            if self.ages[name] > self.finalizing:
                self._store.delete("inferenceservices", name)
            return
        fate = self.fate(service)
        if fate.vanishes and self.ages[name] > 2:
            self._store.delete("inferenceservices", name)
            self.deleted(name)
            return
        if fate.has_deployment:
            self._run(name, service, fate)
        else:
            self._store.set_status("inferenceservices", name, fate.service)

    def applied(self, name: str) -> None:
        """A release without replicas gives its GPU back."""
        service = self._store.objects[("inferenceservices", name)]
        if not service["spec"]["predictor"]["minReplicas"]:
            self.deleted(name)

    def delete(self, name: str) -> None:
        """What DELETE does."""
        self.deleted(name)
        if self.finalizing:
            self._store.objects["inferenceservices", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            self._store.delete("inferenceservices", name)

    def deleted(self, name: str) -> None:
        """Garbage collection."""
        self.holders.discard(name)
        self.well.discard(name)
        for plural, suffix in (("deployments", "-predictor"), ("pods", "-predictor-0"), ("events", "-event")):
            self._store.objects.pop((plural, name + suffix), None)
        self.ages.pop(name, None)
        self.specs.pop(name, None)

    def is_ready(self, name: str) -> bool:
        service = self._store.objects.get(("inferenceservices", name))
        return name in self.holders and service is not None and self.ages[name] >= self.fate(service).ready_after

    def _run(self, name: str, service: Object, fate: Fate) -> None:
        # What a pod template depends on: the spec, and labels and annotations, which KServe copies to pods.
        wanted = copy.deepcopy([service["spec"], service["metadata"].get("annotations")])
        if self.specs.get(name) != wanted:
            self.specs[name] = wanted
            self.starts[name] += 1
        replicas = service["spec"]["predictor"]["minReplicas"]
        if replicas and len(self.holders) < self.gpus:
            self.holders.add(name)
        ready = self.is_ready(name)
        self.well |= {name} if ready else set()
        pending = fate.pod if name in self.holders else unschedulable("0/1 nodes are available: Insufficient gpu")
        annotations = {} if fate.stale else service["spec"]["predictor"]["annotations"]
        counts = dict.fromkeys(("replicas", "updatedReplicas"), replicas)
        counts |= {"availableReplicas": replicas} if ready or fate.stale else {}
        conditions = [{**c, "message": c["message"].replace("{age}", str(self.ages[name]))} for c in fate.conditions]
        self._put("deployments", {
            "kind": "Deployment",
            "metadata": {"name": f"{name}-predictor", "generation": 1},
            "spec": {"replicas": replicas, "template": {"metadata": {"annotations": annotations}}},
            "status": {"observedGeneration": 1, "conditions": [] if ready else conditions, **counts},
        })  # fmt: skip
        status = RUNNING if ready else {"phase": "Pending", **pending}
        labels = {"app": f"isvc.{name}-predictor"}
        self._put("pods", {"kind": "Pod", "metadata": {"name": f"{name}-predictor-0", "labels": labels},
                           "status": status})  # fmt: skip
        if fate.event:
            about = {"kind": "Pod", "name": f"{name}-predictor-0"}
            self._put("events", {"kind": "Event", "metadata": {"name": f"{name}-event"}, "type": "Warning",
                                 "involvedObject": about, "reason": "Failed", "message": fate.event})  # fmt: skip
        called_ready = {"type": "Ready", "status": "True" if ready or fate.stale else "False"}
        self._store.set_status("inferenceservices", name, {"conditions": [called_ready], **fate.service})

    def _put(self, plural: str, body: Object) -> None:
        self._store.objects[plural, body["metadata"]["name"]] = body
