"""Diagnosis of a release that does not start, for people: one block of text, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from components.core.errors import StageError
from components.core.kubernetes.resource_kinds import Object
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.labels import pod_selector

_T = TypeVar("_T")
_EVENTS = 20
_LOG_LINES = 100
# The first group stays, the rest goes.
_SECRETS = (
    re.compile(r"\b()(?:nvapi|hf|ghp|glpat|sk)[-_][A-Za-z0-9_-]{8,}"),
    re.compile(r"\b()(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\b()eyJ[\w-]+\.[\w-]+\.[\w-]*"),
    re.compile(r"(://)[^\s/@]+:[^\s/@]+(?=@)"),
    re.compile(r"(?i)(bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"""(?i)((?:key|token|secret|password)(?:_id)?["']?\s*[:=]\s*["']?)(?!bearer)[^\s"',;&]{4,}"""),
)


def redact(text: str) -> str:
    """Return ``text`` without what looks like a key, a token or a password."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def diagnose(cluster: Cluster, release: str) -> str:
    """Return conditions, warnings, container states and last log lines; what cannot be read is left out."""
    service = _read_or(None, lambda: cluster.get("InferenceService", release))
    deployment = _read_or(None, lambda: cluster.get("Deployment", f"{release}-predictor"))
    labels = ",".join(f"{key}={value}" for key, value in pod_selector(release).items())
    pods: list[Object] = _read_or([], lambda: cluster.list("Pod", labels=labels))
    events: list[Object] = _read_or([], lambda: cluster.list("Event", fields="type=Warning"))
    lines = [f"Diagnosis of {release}"]
    for item in (service, deployment):
        lines += _conditions(item) if item else []
    for pod in pods:
        lines += _states(pod)
    lines += _warnings(events, release)
    for pod in pods:
        lines += _logs(cluster, pod)
    return redact("\n".join(lines))


def _read_or(default: _T, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except StageError:
        return default


def _conditions(item: Object) -> Iterator[str]:
    for condition in item.get("status", {}).get("conditions", []):
        words = (condition.get("reason", ""), condition.get("message", ""))
        yield f"  {item['kind']} {condition['type']}={condition['status']} {' '.join(filter(None, words))}".rstrip()


def _states(pod: Object) -> Iterator[str]:
    status = pod.get("status", {})
    yield f"  Pod {pod['metadata']['name']} {status.get('phase', '')}"
    for container in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        for which in ("state", "lastState"):
            for state, about in (container.get(which) or {}).items():
                known = {key: about[key] for key in ("reason", "exitCode", "message") if about and key in about}
                what = " ".join(f"{key}={value}" for key, value in known.items())
                yield f"    {container['name']} {which}: {state} {what} restarts={container.get('restartCount', 0)}"


def _warnings(events: list[Object], release: str) -> Iterator[str]:
    """The last warnings about anything of the release."""
    warnings = [event for event in events if event.get("involvedObject", {}).get("name", "").startswith(release)]
    warnings.sort(key=lambda event: event.get("lastTimestamp") or event["metadata"].get("creationTimestamp") or "")
    for event in warnings[-_EVENTS:]:
        about = event["involvedObject"]
        yield f"  Event {about.get('kind', '')} {about['name']}: {event.get('reason', '')} {event.get('message', '')}"


def _logs(cluster: Cluster, pod: Object) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        restarted = container.get("restartCount", 0) > 0
        for previous in (True, False) if restarted else (False,):
            text = _log(cluster, name, container["name"], previous)
            if text:
                yield f"  Log of {name}/{container['name']}{' before its restart' if previous else ''}:"
                yield from (f"    {line}" for line in text.splitlines()[-_LOG_LINES:])


def _log(cluster: Cluster, pod: str, container: str, previous: bool) -> str:
    return _read_or("", lambda: cluster.read_log(pod, container, lines=_LOG_LINES, previous=previous))
