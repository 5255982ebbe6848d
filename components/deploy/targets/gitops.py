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
from components.deploy.git.change import Change, ChangeReference, deliver, open_repository
from components.deploy.git.layout import Layout, read_layout
from components.deploy.git.sync_status import Sync
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
    """The objects of the release and the Service that makes it live, written as files, committed, or proposed.

    Raises InputError for settings that contradict each other or the model, ActionNeeded when a token is refused, a
    sync fails or the synced release does not pass, Transient when a change is not merged and synced in time.
    """
    if not config.serving_namespace:
        raise InputError("target=gitops writes objects for a namespace: set serving_namespace")
    how = select_contract(config)
    # Before anything is copied.
    check_compatibility(config, bundle, how)
    uri = publish_model(config, bundle, how, models)
    release = render(config, bundle, how, model_uri=uri, namespace=config.serving_namespace)
    written = _Written(config, release, uri, how.api)
    if not config.git_repository:
        _log.info("wrote the objects of %s: commit deployment/manifests, then verify the endpoint", release.name)
        return written.outcome(None, {}, [], [])
    return _deliver(
        config, how.apply_precision(bundle), written, Requirements(config.latency_budget_ms, None, test_set)
    )


def _deliver(config: DeployConfig, bundle: Bundle, written: _Written, wanted: Requirements) -> DeployResult:
    release = written.release
    with open_repository(config) as host:
        before = read_layout(host, config)
        if config.gitops_wait == "none":
            change = Change(release.name, f"Serve {release.name}", written.text(before), written.live)
            return written.outcome(before, deliver(host, config, release, change).about(), [], [])
        sync = Sync(connect(config.serving_namespace), connect(config.gitops_application.partition("/")[0]), config)
        verifier = CandidateVerifier(config, bundle, release.name, lambda: None, wanted, written.api)
        checks = []
        if before.live != release.name:
            change = Change(release.name, f"Add {release.name}, not live yet", written.text(before))
            added = deliver(host, config, release, change)
            checks = _synced(sync, release, added, verifier, config)
        title = f"Serve {release.name}"
        change = Change(f"{release.name}-live", title, written.text(before, checks), written.live)
        promoted = deliver(host, config, release, change)
        sync.wait_until_live(release, promoted)
        live = verifier.verify_live(release.live_url(config.cluster_domain))
        return written.outcome(before, promoted.about(), checks or live, live)


def _synced(
    sync: Sync, release: Release, added: ChangeReference, verifier: CandidateVerifier, config: DeployConfig
) -> list[Check]:
    sync.wait_until_running(release, added)
    url = release.url(config.cluster_domain)
    verifier.wait_until_reachable(url)
    return verifier.verify(url)


@dataclass(frozen=True)
class _Written:
    """A release as files, and what is said of it."""

    config: DeployConfig
    release: Release
    model_uri: str
    api: ApiName

    @property
    def live(self) -> list[Object]:
        """What makes it live."""
        objects = [live_service(self.release)]
        return objects + ([verify_job(self.config, self.release, self.model_uri, self.api)] if self._verifies else [])

    @property
    def _verifies(self) -> bool:
        return bool(self.config.gitops_verify_image)

    def text(self, before: Layout, checks: list[Check] | None = None) -> str:
        """The body of the change, for the person who merges it."""
        lines = [
            f"- model digest: `{self.release.model_digest}`",
            f"- checkpoint digest: `{self.release.checkpoint_digest}`",
            f"- served from: `{self.model_uri}`",
            f"- live before: `{before.live or 'nothing'}`",
        ]
        if self._reindex(before):
            lines.append("- **another model than before: documents must be embedded again**")
        table = [format_markdown(f"{self.release.name}, synced and verified", checks)] if checks else []
        return "\n".join([*lines, "", *table])

    def outcome(
        self, before: Layout | None, about: dict[str, str], checks: list[Check], live: list[Check]
    ) -> DeployResult:
        domain, release = self.config.cluster_domain, self.release
        old = before.live if before and before.live != release.name and self.config.keep_releases else ""
        return DeployResult(
            release.live_url(domain),
            release.model_digest,
            reindex_required=self._reindex(before),
            previous_endpoint=service_url(direct_name(old), release.namespace, domain) if old else "",
            checks=checks,
            live=live,
            objects=[*release.objects, *self.live],
            about=release.about(self.model_uri) | about,
        )

    def _reindex(self, before: Layout | None) -> bool:
        return before is None or before.checkpoint_digest != self.release.checkpoint_digest
