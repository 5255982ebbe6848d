"""Waits until Argo CD or Flux has applied a change.

The cluster's objects decide whether it has; the status of the Application or Kustomization says why it has not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from components.core.errors import ActionNeeded, Transient
from components.core.kubernetes.resource_kinds import Object
from components.deploy.component import DeployConfig
from components.deploy.git.change import ChangeReference
from components.deploy.kubernetes import rollout
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.kubernetes.diagnosis import diagnose
from components.deploy.labels import RELEASE, live_name
from components.deploy.objects.render import Release

_log = logging.getLogger(__name__)


class SyncWatcher:
    """Watches ``cluster``, the namespace that serves, and the Application or Kustomization in ``syncer``'s."""

    def __init__(self, cluster: Cluster, syncer: Cluster, config: DeployConfig) -> None:
        self._cluster, self._syncer, self._config = cluster, syncer, config
        self._name = config.gitops_application.partition("/")[2]

    def wait_until_running(self, release: Release, change: ChangeReference) -> None:
        """Wait until the release is applied and all its pods serve its model."""
        self._wait(change, lambda: self._cluster.get("InferenceService", release.name) is not None)
        try:
            rollout.wait_until_ready(self._cluster, release.name, release.model_digest, self._config, lambda: None)
        except ActionNeeded:
            _log.error("%s", diagnose(self._cluster, release.name))
            raise

    def wait_until_live(self, release: Release, change: ChangeReference) -> None:
        """Wait until the Service of clients selects the release."""

        def is_live() -> bool:
            service = self._cluster.get("Service", live_name(release.service)) or {"metadata": {}}
            return bool(service["metadata"].get("annotations", {}).get(RELEASE) == release.name)

        self._wait(change, is_live)

    def _wait(self, change: ChangeReference, has_arrived: Callable[[], bool]) -> None:
        """Wait until the change has arrived.

        Raises ActionNeeded when the sync fails for ``failure_patience`` seconds, Transient after ``gitops_timeout``.
        """
        began = time.monotonic()
        failing_since: float | None = None
        shown = ""
        while not has_arrived():
            state, failed = self._read_state()
            now = time.monotonic()
            failing_since = (failing_since or now) if failed else None
            if failing_since is not None and now - failing_since >= self._config.failure_patience:
                raise ActionNeeded(f"{self._config.gitops_application} does not sync {change}: {state}")
            if now - began > self._config.gitops_timeout:
                raise Transient(
                    f"{change} was not merged and synced within {self._config.gitops_timeout:g} s ({state}): merge it, "
                    f"then run again"
                )
            if state != shown:
                _log.info("waiting for %s: %s", change, shown := state)
            time.sleep(self._config.health_check_interval)

    def _read_state(self) -> tuple[str, bool]:
        """Return the status of the sync, and whether it has failed."""
        kind = {"argocd": "Application", "flux": "Kustomization"}[self._config.gitops_wait]
        application = self._syncer.get(kind, self._name)
        if application is None:
            raise ActionNeeded(f"there is no {kind} {self._config.gitops_application}: correct gitops_application")
        return _read_argo_cd(application) if kind == "Application" else _read_flux(application)


def _read_argo_cd(application: Object) -> tuple[str, bool]:
    """Source: argo-cd, ``ApplicationStatus``: sync.status, health.status, operationState.phase, conditions."""
    status = application.get("status", {})
    operation = status.get("operationState", {})
    words = [status.get("sync", {}).get("status", "Unknown"), status.get("health", {}).get("status", "")]
    errors = [c.get("message", "") for c in status.get("conditions", []) if c.get("type", "").endswith("Error")]
    failed = operation.get("phase") in ("Failed", "Error") or bool(errors)
    if failed:
        words += [operation.get("message", ""), *errors]
    return " ".join(" ".join(filter(None, words)).split()), failed


def _read_flux(kustomization: Object) -> tuple[str, bool]:
    """Source: Flux, ``KustomizationStatus``: conditions of kstatus, observedGeneration, lastAppliedRevision."""
    status = kustomization.get("status", {})
    if status.get("observedGeneration", -1) < kustomization["metadata"].get("generation", 0):
        return "not reconciled yet", False
    ready: Object = next((c for c in status.get("conditions", []) if c.get("type") == "Ready"), {})
    words = [ready.get("reason", "Unknown"), ready.get("message", ""), status.get("lastAppliedRevision", "")]
    return " ".join(" ".join(filter(None, words)).split()), ready.get("status") == "False"
