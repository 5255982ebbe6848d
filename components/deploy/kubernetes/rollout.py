"""Waits until a release serves. KServe's ``Ready`` alone is no proof: it may be that of earlier pods."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from components.core.errors import ActionNeeded
from components.core.kubernetes.resource_kinds import Object
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.labels import MODEL_DIGEST, pod_selector
from components.deploy.settings.rollout_settings import Rollout

_PULL_REASONS = ("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "RegistryUnavailable")
_PERMANENT_REASONS = ("InvalidImageName",)
_CRASHES = 3
_DOWNLOAD_CRASHES = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutProblem:
    """Something that is wrong now. It ends the deployment when its ``kind`` has lasted for ``patience`` seconds.

    ``message`` is for people; it may change from read to read, as names of pods do.
    """

    kind: str
    message: str
    patience: float = 0.0


def wait_until_ready(cluster: Cluster, release: str, digest: str, config: Rollout, check: Callable[[], None]) -> None:
    """Wait until every pod of ``release`` serves the model of ``digest``.

    ``check`` is called before each read of the status and may raise. Raises ActionNeeded as soon as a person must
    act, and after ``rollout_timeout`` seconds.
    """
    began = time.monotonic()
    first_seen: dict[str, float] = {}
    shown = ""
    while True:
        check()
        state, problems = read_status(cluster, release, digest, config)
        if not state:
            _log.info("%s is ready after %.0f s", release, time.monotonic() - began)
            return
        now = time.monotonic()
        first_seen = {problem.kind: first_seen.get(problem.kind, now) for problem in problems}
        for problem in problems:
            if now - first_seen[problem.kind] >= problem.patience:
                raise ActionNeeded(f"release {release} does not start: {problem.message}")
        if now - began > config.rollout_timeout:
            raise ActionNeeded(
                f"release {release} was not ready within {config.rollout_timeout:g} s ({state}): "
                f"raise rollout_timeout, or see the diagnosis above"
            )
        if state != shown:
            _log.info("%s: %s", release, shown := state)
        time.sleep(config.health_check_interval)


def wait_until_gone(cluster: Cluster, release: str, config: Rollout, check: Callable[[], None]) -> None:
    """Wait until no removal of ``release`` by an earlier deployment is under way.

    Raises ActionNeeded after ``rollout_timeout`` seconds.
    """
    deadline = time.monotonic() + config.rollout_timeout
    while (service := cluster.get("InferenceService", release)) and is_ending(service):
        check()
        if time.monotonic() > deadline:
            raise ActionNeeded(f"release {release} was deleted and does not go: look whether KServe's controller runs")
        time.sleep(config.health_check_interval)


def read_status(cluster: Cluster, release: str, digest: str, config: Rollout) -> tuple[str, list[RolloutProblem]]:
    """Return what ``release`` waits for, empty when it serves, and what is wrong with it."""
    service = cluster.get("InferenceService", release)
    if service is None or is_ending(service):
        message = "somebody deleted its InferenceService meanwhile: run deploy again"
        return "deleted", [RolloutProblem("deleted", message)]
    deployment = cluster.get("Deployment", f"{release}-predictor")
    pods = cluster.list("Pod", labels=",".join(f"{k}={v}" for k, v in pod_selector(release).items()))
    problems = [*_deployment_problems(service, deployment, config)]
    for pod in pods:
        problems += _pod_problems(pod, config)
    return _waiting_for(service, deployment, digest), problems


def is_ending(thing: Object) -> bool:
    """Return whether the object was deleted, and only waits for its finalizers."""
    return "deletionTimestamp" in thing["metadata"]


def _waiting_for(service: Object, deployment: Object | None, digest: str) -> str:
    """Return the first thing that is missing; the Deployment's own numbers count before KServe's conditions."""
    if deployment is None:
        return "waiting for KServe to make its Deployment"
    spec, status = deployment["spec"], deployment.get("status", {})
    annotations = spec["template"]["metadata"].get("annotations", {})
    if annotations.get(MODEL_DIGEST) != digest or status.get("observedGeneration", 0) < _generation(deployment):
        return "waiting for its Deployment to be brought up to date"
    replicas = spec.get("replicas", 1)
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    if counts != [replicas] * 3:
        return f"{counts[2]} of {replicas} pods available"
    if not _is_true(service, "Ready"):
        return "waiting for KServe to call it ready"
    return ""


def _generation(thing: Object) -> int:
    generation: int = thing["metadata"].get("generation", 0)
    return generation


def _is_true(thing: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in _conditions(thing))


def _conditions(thing: Object) -> list[Object]:
    conditions: list[Object] = thing.get("status", {}).get("conditions", [])
    return conditions


def _deployment_problems(service: Object, deployment: Object | None, config: Rollout) -> Iterator[RolloutProblem]:
    if deployment is None:
        # For a moment also of a good one, until the controller has seen its ServingRuntime.
        failure = service.get("status", {}).get("modelStatus", {}).get("lastFailureInfo")
        reason = f" ({failure.get('reason', '')} {failure.get('message', '')})" if failure else ""
        advice = "look whether its controller runs, and whether kserve_mode fits"
        yield RolloutProblem(
            "no Deployment", f"KServe has made no Deployment for it{reason}: {advice}", config.failure_patience
        )
        return
    for condition in _conditions(deployment):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            yield RolloutProblem(
                "refused", f"its pods are refused: {condition.get('message', '')}", config.failure_patience
            )


def _pod_problems(pod: Object, config: Rollout) -> Iterator[RolloutProblem]:
    status = pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            advice = "change serving_node_selector, or free or add a node"
            message = f"no node takes its pod ({condition.get('message', '')}): {advice}"
            yield RolloutProblem("unschedulable", message, config.schedule_timeout)
    for container in status.get("initContainerStatuses", []):
        yield from _container_problems(container, config, _DOWNLOAD_CRASHES, "check the model's storage and its rights")
    for container in status.get("containerStatuses", []):
        yield from _container_problems(container, config, _CRASHES, "see its log above")


def _container_problems(container: Object, config: Rollout, crashes: int, advice: str) -> Iterator[RolloutProblem]:
    name, waiting, ended = container["name"], _part(container, "state", "waiting"), _ended(container)
    reason, details = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PERMANENT_REASONS:
        yield RolloutProblem(reason, f"{name}: {reason} {details}".rstrip() + ": correct serving_image")
    elif reason in _PULL_REASONS:
        # Reasons alternate: all are one kind.
        advice = "check serving_image and image_pull_secret_name"
        message = f"{name}: {container.get('image', 'its image')} cannot be pulled ({reason} {details}): {advice}"
        yield RolloutProblem("pull", message, config.failure_patience)
    elif reason == "CreateContainerConfigError":
        yield RolloutProblem(reason, f"{name}: {reason} {details}: make what it names", config.failure_patience)
    if ended.get("reason") == "OOMKilled":
        yield RolloutProblem("memory", f"{name}: out of memory (OOMKilled): raise serving_memory")
    elif ended.get("exitCode") and container.get("restartCount", 0) >= crashes:
        message = f"{name} ended {container['restartCount']} times, last with code {ended['exitCode']}: {advice}"
        yield RolloutProblem("crash", message)


def _ended(container: Object) -> dict[str, Any]:
    return _part(container, "state", "terminated") or _part(container, "lastState", "terminated")


def _part(container: Object, state: str, name: str) -> dict[str, Any]:
    return (container.get(state) or {}).get(name) or {}
