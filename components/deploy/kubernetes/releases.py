"""Releases of a service in the cluster: the live one, earlier ones, and the switch from one to another."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from components.core.errors import ActionNeeded, InputError
from components.core.kubernetes.errors import WriteConflict
from components.core.kubernetes.resource_kinds import Object
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.kubernetes.diagnosis import redact
from components.deploy.kubernetes.lease import TICKET, DeployLease, Superseded
from components.deploy.kubernetes.rollout import is_ending
from components.deploy.labels import (
    CHECKPOINT_DIGEST,
    MANAGED_BY,
    MODEL_DIGEST,
    RELEASE,
    direct_name,
    live_name,
    pod_selector,
)
from components.deploy.objects.render import Release, live_annotations, live_service

_LEDGER_ENTRIES = 10
_KEY = "releases.json"
_FAILURE = "last-failure.md"
# The InferenceService first: its pods hold the GPUs.
_PARTS = ("InferenceService", "ServingRuntime", "Service", "PodDisruptionBudget")
# Of a release that was made with settings that ask for them; deploy may lack the rights when its own do not.
_OPTIONAL_PARTS = {"NetworkPolicy": "{}", "ServiceAccount": "{}-models"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveRelease:
    """The release that clients reach."""

    release: str
    model_digest: str
    checkpoint_digest: str


class Releases:
    """The releases of one service in the cluster."""

    def __init__(self, cluster: Cluster, service: str) -> None:
        self._cluster, self._service = cluster, service
        self._alias, self._ledger = live_name(service), f"{service}-releases"

    def read_live(self) -> LiveRelease | None:
        """Return the live release; None before the first. Raises InputError for a Service that deploy did not make."""
        return _parse_live(self._read_alias())

    def switch(self, release: Release, lease: DeployLease) -> None:
        """Let clients reach ``release``. Raises Superseded when a later deployment has switched, or could have."""
        lease.check_now()
        service = live_service(release)
        self._switch(service["spec"]["selector"], live_annotations(release), lease, new=service)
        _log.info("%s serves %s", self._alias, release.name)

    def switch_back(self, previous: LiveRelease | None, lease: DeployLease) -> None:
        """Let clients reach what they reached before the switch."""
        if previous is None:
            self._cluster.delete("Service", self._alias)
            return
        annotations = {
            RELEASE: previous.release,
            MODEL_DIGEST: previous.model_digest,
            CHECKPOINT_DIGEST: previous.checkpoint_digest,
        }
        self._switch(pod_selector(previous.release), annotations, lease)
        _log.error("%s serves %s again", self._alias, previous.release)

    def _switch(
        self, selector: dict[str, str], annotations: dict[str, str], lease: DeployLease, *, new: Object | None = None
    ) -> None:
        """The ticket on the Service and its resourceVersion keep an earlier deployment from undoing a later one."""
        while True:
            service = self._read_alias()
            with contextlib.suppress(WriteConflict):
                if service is None:
                    if new is None:
                        return
                    new["metadata"]["annotations"][TICKET] = str(lease.ticket)
                    self._cluster.create(new)
                    return
                current = service["metadata"].setdefault("annotations", {})
                if int(current.get(TICKET, "0")) > lease.ticket:
                    raise Superseded(f"a newer deployment of {self._service} has switched: it replaces this one")
                current |= annotations | {TICKET: str(lease.ticket)}
                service["spec"]["selector"] = selector
                self._cluster.replace(service)
                return

    def record(self, entry: dict[str, Any]) -> None:
        """Add to the ledger, the ConfigMap ``<service>-releases``: the last releases that were live, newest first."""

        def add(data: dict[str, str]) -> dict[str, str]:
            entries = [e for e in _parse_entries(data) if e["release"] != entry["release"]]
            return data | {_KEY: json.dumps([entry, *entries][:_LEDGER_ENTRIES], indent=2)}

        self._write_ledger(add)

    def report_failure(self, release: str, error: Exception, diagnosis: str) -> None:
        """Leave what went wrong beside the ledger, for people: a failed task of a pipeline keeps no artifact."""
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = f"# {release}, {when}\n\n{redact(str(error))}\n\n```\n{diagnosis}\n```\n"
        self._write_ledger(lambda data: data | {_FAILURE: text})

    def _write_ledger(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        while True:
            ledger = self._cluster.get("ConfigMap", self._ledger)
            with contextlib.suppress(WriteConflict):
                if ledger:
                    self._cluster.replace({**ledger, "data": change(ledger.get("data") or {})})
                else:
                    metadata = {"name": self._ledger, "labels": {"app.kubernetes.io/managed-by": MANAGED_BY}}
                    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": change({})}
                    self._cluster.create(body)
                return

    def read_history(self) -> list[str]:
        """Return the names of the releases that were live, newest first."""
        return [entry["release"] for entry in self._read_ledger()]

    def read_latency(self) -> dict[str, float]:
        """Return the latency measured of the release that went live last; empty when none was."""
        entries = self._read_ledger()
        measured = entries[0].get("latency") if entries else None
        return measured if isinstance(measured, dict) else {}

    def _read_ledger(self) -> list[dict[str, Any]]:
        return _parse_entries((self._cluster.get("ConfigMap", self._ledger) or {}).get("data") or {})

    def list_running(self) -> list[str]:
        """Return the names of all releases that are in the cluster."""
        labels = f"app.kubernetes.io/instance={self._service},app.kubernetes.io/managed-by={MANAGED_BY}"
        services = self._cluster.list("InferenceService", labels=labels)
        return [service["metadata"]["name"] for service in services if not is_ending(service)]

    def stop(self, name: str) -> None:
        """End the pods of a release, and keep the release."""
        self._scale(name, lambda _: 0)
        _log.info("stopped %s", name)

    def start(self, name: str) -> bool:
        """Start the pods of a release that was stopped; return False when it was not."""
        # Stopping sets the minimum to 0 and keeps the maximum.
        return self._scale(name, lambda predictor: predictor["minReplicas"] or predictor["maxReplicas"])

    def _scale(self, name: str, replicas: Callable[[Object], int]) -> bool:
        """Apply the release with another number of pods; return whether that was a change."""
        service = self._cluster.get("InferenceService", name)
        if service is None:
            return False
        metadata = {key: service["metadata"].get(key, {}) for key in ("name", "namespace", "labels", "annotations")}
        predictor = service["spec"]["predictor"]
        count = replicas(predictor)
        if count == predictor["minReplicas"]:
            return False
        spec = {**service["spec"], "predictor": {**predictor, "minReplicas": count}}
        api_version, kind = service["apiVersion"], service["kind"]
        self._cluster.apply({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec})
        return True

    def remove(self, name: str) -> None:
        """Remove a release from the cluster; never the live one."""
        if (live := self.read_live()) and live.release == name:
            return
        for kind in _PARTS:
            self._cluster.delete(kind, direct_name(name) if kind == "Service" else name)
        for kind, pattern in _OPTIONAL_PARTS.items():
            with contextlib.suppress(ActionNeeded):
                self._cluster.delete(kind, pattern.format(name))
        _log.info("removed %s", name)

    def _read_alias(self) -> Object | None:
        service = self._cluster.get("Service", self._alias)
        if service and service["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") != MANAGED_BY:
            raise InputError(f"there is a Service {self._alias} that deploy did not make: choose another service_name")
        return service


def _parse_live(service: Object | None) -> LiveRelease | None:
    if service is None:
        return None
    annotations = service["metadata"].get("annotations", {})
    return LiveRelease(*(annotations.get(key, "") for key in (RELEASE, MODEL_DIGEST, CHECKPOINT_DIGEST)))


def _parse_entries(data: dict[str, str]) -> list[dict[str, Any]]:
    """Return the ledger's entries; none when people have edited it so that it cannot be read."""
    try:
        return [e for e in json.loads(data.get(_KEY, "[]")) if "release" in e]
    except (ValueError, TypeError):
        return []
