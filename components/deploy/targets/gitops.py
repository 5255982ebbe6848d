"""The target `gitops`: the objects as files, for Argo CD or Flux to apply; in a repository when one is named.

With ``gitops_wait`` a release is merged and synced first, verified behind its own address, and only then made live by a
second change. Without, one change has both, and nothing is verified here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.api import ApiName
from components.core.serving.bundle import Bundle
from components.deploy.backends.compatibility import check_compatibility
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.git.change import Change, deliver_change, open_repository
from components.deploy.git.host import GitHost
from components.deploy.git.layout import Layout, read_layout
from components.deploy.git.sync_status import SyncWatcher
from components.deploy.kubernetes.cluster import connect
from components.deploy.labels import direct_name, service_url
from components.deploy.objects.render import Release, live_service, render
from components.deploy.objects.verify_job import verify_job
from components.deploy.publishing.publish import ModelUris, publish_model
from components.deploy.result import DeployResult
from components.deploy.verification.candidate import CandidateVerifier
from components.deploy.verification.check_table import format_markdown
from components.deploy.verification.checks import Check
from components.deploy.verification.retrieval_check import TestSet
from components.deploy.verification.verify_endpoint import Requirements

_log = logging.getLogger(__name__)


def deploy(config: DeployConfig, bundle: Bundle, models: ModelUris, test_set: TestSet | None = None) -> DeployResult:
    """Write the objects of the release, and the Service that makes it live, as files; commit or propose them.

    Raises InputError for settings that contradict each other or the model, ActionNeeded when a token is refused, a
    sync fails or the synced release does not pass, Transient when a change is not merged and synced in time.
    """
    if not config.serving_namespace:
        raise InputError("target=gitops writes objects for a namespace: set serving_namespace")
    contract = select_contract(config)
    # Before anything is copied.
    check_compatibility(config, bundle, contract)
    uri = publish_model(config, bundle, contract, models)
    release = render(config, bundle, contract, model_uri=uri, namespace=config.serving_namespace)
    manifests = _ReleaseManifests(config, release, uri, contract.api)
    if not config.git_repository:
        _log.info("wrote the objects of %s: commit deployment/manifests, then verify the endpoint", release.name)
        return manifests.result(None, {}, [], [])
    requirements = Requirements(config.latency_budget_ms, None, test_set)
    with open_repository(config) as host:
        if config.gitops_wait == "none":
            return _deliver(config, manifests, host)
        return _deliver_and_verify(config, contract.apply_precision(bundle), manifests, host, requirements)


def _deliver(config: DeployConfig, manifests: _ReleaseManifests, host: GitHost) -> DeployResult:
    """One change adds the release and makes it live."""
    release, before = manifests.release, read_layout(host, config)
    change = Change(release.name, f"Serve {release.name}", manifests.describe(before), manifests.live_objects)
    return manifests.result(before, deliver_change(host, config, release, change).describe(), [], [])


def _deliver_and_verify(
    config: DeployConfig, bundle: Bundle, manifests: _ReleaseManifests, host: GitHost, requirements: Requirements
) -> DeployResult:
    """One change adds the release; once it is synced and verified, a second one makes it live."""
    release, before = manifests.release, read_layout(host, config)
    syncer_namespace = config.gitops_application.partition("/")[0]
    watcher = SyncWatcher(connect(config.serving_namespace), connect(syncer_namespace), config)
    verifier = CandidateVerifier(config, bundle, release.name, lambda: None, requirements, manifests.api)
    checks: list[Check] = []
    if before.live != release.name:
        change = Change(release.name, f"Add {release.name}, not live yet", manifests.describe(before))
        watcher.wait_until_running(release, deliver_change(host, config, release, change))
        url = release.url(config.cluster_domain)
        verifier.wait_until_reachable(url)
        checks = verifier.verify(url)
    title = f"Serve {release.name}"
    change = Change(f"{release.name}-live", title, manifests.describe(before, checks), manifests.live_objects)
    reference = deliver_change(host, config, release, change)
    watcher.wait_until_live(release, reference)
    live_checks = verifier.verify_live(release.live_url(config.cluster_domain))
    return manifests.result(before, reference.describe(), checks or live_checks, live_checks)


@dataclass(frozen=True)
class _ReleaseManifests:
    """A release as files, and its description for people."""

    config: DeployConfig
    release: Release
    model_uri: str
    api: ApiName

    @property
    def live_objects(self) -> list[Object]:
        """The objects that make the release live."""
        objects = [live_service(self.release)]
        if self.config.gitops_verify_image:
            objects.append(verify_job(self.config, self.release, self.model_uri, self.api))
        return objects

    def describe(self, before: Layout, checks: list[Check] | None = None) -> str:
        """Return the text of the change, for the person who merges it."""
        lines = [
            f"- model digest: `{self.release.model_digest}`",
            f"- checkpoint digest: `{self.release.checkpoint_digest}`",
            f"- served from: `{self.model_uri}`",
            f"- live before: `{before.live or 'nothing'}`",
        ]
        if self._needs_reindex(before):
            lines.append("- **another model than before: documents must be embedded again**")
        table = [format_markdown(f"{self.release.name}, synced and verified", checks)] if checks else []
        return "\n".join([*lines, "", *table])

    def result(
        self, before: Layout | None, about: dict[str, str], checks: list[Check], live_checks: list[Check]
    ) -> DeployResult:
        """Return what was written; ``before`` is the repository's layout, when there is one."""
        domain, release = self.config.cluster_domain, self.release
        old = before.live if before and before.live != release.name and self.config.keep_releases else ""
        return DeployResult(
            release.live_url(domain),
            release.model_digest,
            reindex_required=self._needs_reindex(before),
            previous_endpoint=service_url(direct_name(old), release.namespace, domain) if old else "",
            checks=checks,
            live_checks=live_checks,
            objects=[*release.objects, *self.live_objects],
            about=release.about(self.model_uri) | about,
        )

    def _needs_reindex(self, before: Layout | None) -> bool:
        return before is None or before.checkpoint_digest != self.release.checkpoint_digest
