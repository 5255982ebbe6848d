"""Which release is live, which were, and the switch from one to another."""

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

    def live(self) -> LiveRelease | None:
        """The live release; None before the first. Raises InputError for a Service that deploy did not make."""
        return _live(self._alias_object())

    def switch(self, release: Release, lease: DeployLease) -> None:
        """Let clients reach ``release``. Raises Superseded when a later deployment has switched, or could have."""
        lease.check_now()
        wanted = live_service(release)
        self._switch(wanted["spec"]["selector"], live_annotations(release), lease, new=wanted)
        _log.info("%s serves %s", self._alias, release.name)

    def switch_back(self, old: LiveRelease | None, lease: DeployLease) -> None:
        """Let clients reach what they reached before the switch."""
        if old is None:
            self._cluster.delete("Service", self._alias)
            return
        said = {RELEASE: old.release, MODEL_DIGEST: old.model_digest, CHECKPOINT_DIGEST: old.checkpoint_digest}
        self._switch(pod_selector(old.release), said, lease)
        _log.error("%s serves %s again", self._alias, old.release)

    def _switch(
        self, selector: dict[str, str], annotations: dict[str, str], lease: DeployLease, *, new: Object | None = None
    ) -> None:
        """The ticket on the Service and its resourceVersion keep an earlier deployment from undoing a later one."""
        while True:
            found = self._alias_object()
            with contextlib.suppress(WriteConflict):
                if found is None:
                    if new is None:
                        return
                    new["metadata"]["annotations"][TICKET] = str(lease.ticket)
                    self._cluster.create(new)
                    return
                said = found["metadata"].setdefault("annotations", {})
                if int(said.get(TICKET, "0")) > lease.ticket:
                    raise Superseded(f"a newer deployment of {self._service} has switched: it replaces this one")
                said |= annotations | {TICKET: str(lease.ticket)}
                found["spec"]["selector"] = selector
                self._cluster.replace(found)
                return

    def record(self, entry: dict[str, Any]) -> None:
        """Add to the ledger, the ConfigMap ``<service>-releases``: the last releases that were live, newest first."""

        def add(data: dict[str, str]) -> dict[str, str]:
            entries = [e for e in _entries(data) if e["release"] != entry["release"]]
            return data | {_KEY: json.dumps([entry, *entries][:_LEDGER_ENTRIES], indent=2)}

        self._write_ledger(add)

    def report_failure(self, release: str, error: Exception, diagnosis: str) -> None:
        """Leave what went wrong beside the ledger, for people: a failed task of a pipeline keeps no artifact."""
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = f"# {release}, {when}\n\n{redact(str(error))}\n\n```\n{diagnosis}\n```\n"
        self._write_ledger(lambda data: data | {_FAILURE: text})

    def _write_ledger(self, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        while True:
            found = self._cluster.get("ConfigMap", self._ledger)
            with contextlib.suppress(WriteConflict):
                if found:
                    self._cluster.replace({**found, "data": change(found.get("data") or {})})
                else:
                    metadata = {"name": self._ledger, "labels": {"app.kubernetes.io/managed-by": MANAGED_BY}}
                    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": change({})}
                    self._cluster.create(body)
                return

    def history(self) -> list[str]:
        """Names of the releases that were live, newest first."""
        return [entry["release"] for entry in self._ledger_entries()]

    def latency(self) -> dict[str, float]:
        """What was measured of the release that went live last; empty when nothing was."""
        entries = self._ledger_entries()
        measured = entries[0].get("latency") if entries else None
        return measured if isinstance(measured, dict) else {}

    def _ledger_entries(self) -> list[dict[str, Any]]:
        return _entries((self._cluster.get("ConfigMap", self._ledger) or {}).get("data") or {})

    def running(self) -> list[str]:
        """Names of all releases that are in the cluster."""
        labels = f"app.kubernetes.io/instance={self._service},app.kubernetes.io/managed-by={MANAGED_BY}"
        found = self._cluster.list("InferenceService", labels=labels)
        return [service["metadata"]["name"] for service in found if not is_ending(service)]

    def stop(self, name: str) -> None:
        """End the pods of a release, and keep the release."""
        self._scale(name, lambda _: 0)
        _log.info("stopped %s", name)

    def start(self, name: str) -> bool:
        """Start the pods of a release that was stopped; False when it was not."""
        # What it had is still its maximum.
        return self._scale(name, lambda predictor: predictor["minReplicas"] or predictor["maxReplicas"])

    def _scale(self, name: str, replicas: Callable[[Object], int]) -> bool:
        """Apply the release with another number of pods; whether that was a change."""
        found = self._cluster.get("InferenceService", name)
        if found is None:
            return False
        kept = {key: found["metadata"].get(key, {}) for key in ("name", "namespace", "labels", "annotations")}
        predictor = found["spec"]["predictor"]
        wanted = replicas(predictor)
        if wanted == predictor["minReplicas"]:
            return False
        spec = {**found["spec"], "predictor": {**predictor, "minReplicas": wanted}}
        self._cluster.apply({"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": kept, "spec": spec})
        return True

    def remove(self, name: str) -> None:
        """Remove a release from the cluster; never the live one."""
        if (live := self.live()) and live.release == name:
            return
        for kind in _PARTS:
            self._cluster.delete(kind, direct_name(name) if kind == "Service" else name)
        for kind, pattern in _OPTIONAL_PARTS.items():
            with contextlib.suppress(ActionNeeded):
                self._cluster.delete(kind, pattern.format(name))
        _log.info("removed %s", name)

    def _alias_object(self) -> Object | None:
        found = self._cluster.get("Service", self._alias)
        if found and found["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") != MANAGED_BY:
            raise InputError(f"there is a Service {self._alias} that deploy did not make: choose another service_name")
        return found


def _live(service: Object | None) -> LiveRelease | None:
    if service is None:
        return None
    said = service["metadata"].get("annotations", {})
    return LiveRelease(said.get(RELEASE, ""), said.get(MODEL_DIGEST, ""), said.get(CHECKPOINT_DIGEST, ""))


def _entries(data: dict[str, str]) -> list[dict[str, Any]]:
    """The ledger's entries; one that people have broken counts as empty."""
    try:
        return [e for e in json.loads(data.get(_KEY, "[]")) if "release" in e]
    except (ValueError, TypeError):
        return []
