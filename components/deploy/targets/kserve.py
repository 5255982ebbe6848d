"""The target `kserve`: publish, render, deliver, verify, promote. Clients reach the old release until the new one has
proven itself behind an address of its own, and reach it again when the new one fails after the switch."""

from __future__ import annotations

import contextlib
import datetime
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from components.core.errors import ActionNeeded, StageError
from components.core.serving.api import ApiName
from components.core.serving.bundle import Bundle
from components.deploy.backends.compatibility import check_compatibility
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.kubernetes import permissions, rollout
from components.deploy.kubernetes.cluster import Cluster, connect
from components.deploy.kubernetes.diagnosis import diagnose
from components.deploy.kubernetes.lease import DeployLease
from components.deploy.kubernetes.releases import LiveRelease, Releases
from components.deploy.labels import direct_name, live_name, service_url
from components.deploy.objects.render import Release, live_service, render
from components.deploy.publishing.publish import ModelUris, publish_model
from components.deploy.result import DeployResult
from components.deploy.targets.canary import Canary, require_same_weights
from components.deploy.verification.candidate import CandidateVerifier
from components.deploy.verification.checks import Check
from components.deploy.verification.retrieval_check import TestSet
from components.deploy.verification.verify_endpoint import Requirements, extract_latency

_log = logging.getLogger(__name__)


def deploy(config: DeployConfig, bundle: Bundle, models: ModelUris, test_set: TestSet | None = None) -> DeployResult:
    """Serve one of ``models`` in the cluster and prove it by ``bundle``, and by ``test_set`` when there is one; when
    anything fails, what served before serves on.

    Raises InputError for settings that contradict each other, the model or the cluster; ActionNeeded when rights are
    missing, or the release does not start or does not pass verification; Transient when a newer deployment has come
    or the cluster stays unavailable.
    """
    how = select_contract(config)
    check_compatibility(config, bundle, how)
    cluster = connect(config.serving_namespace)
    permissions.require(cluster, config)
    uri = publish_model(config, bundle, how, models)
    release = render(config, bundle, how, model_uri=uri, namespace=cluster.namespace)
    wanted = Requirements(config.latency_budget_ms, None, test_set)
    lease = DeployLease(cluster, config.service_name, poll=min(1.0, config.health_check_interval))
    with _terminated_as_interrupted(), lease.hold(timeout=config.rollout_timeout):
        return _ClusterDeployment(config, how.apply_precision(bundle), cluster, release, lease, wanted, how.api).run(
            uri
        )


class _ClusterDeployment:
    def __init__(
        self,
        config: DeployConfig,
        bundle: Bundle,
        cluster: Cluster,
        release: Release,
        lease: DeployLease,
        wanted: Requirements,
        api: ApiName,
    ) -> None:
        self.config, self.cluster, self.release, self.lease = config, cluster, release, lease
        self.releases = Releases(cluster, config.service_name)
        wanted = replace(wanted, previous_latency=self.releases.latency())
        self.verifier = CandidateVerifier(config, bundle, release.name, lease.check, wanted, api)
        self.canary = Canary(cluster, config, release, self.verifier)

    def run(self, uri: str) -> DeployResult:
        old = self.releases.live()
        if self.config.strategy == "canary":
            require_same_weights(old, self.release)
        proven = self._remove_leftovers(old)
        try:
            self._deliver(dry_run=True)
            if self.config.strategy == "recreate":
                self._stop_others(proven)
            checks = self._try_candidate()
            self._share(old)
            live = self._promote(old)
        except BaseException as error:
            self._give_up(proven, error)
            self._start_again(old)
            raise
        self._keep_books(proven, checks)
        return self._outcome(old, uri, checks, live)

    def _remove_leftovers(self, old: LiveRelease | None) -> list[str]:
        """Remove candidates of deployments that were killed, for they hold GPUs.

        Return the releases that run and were live once, the present one first.
        """
        running = self.releases.running()
        history = [*([old.release] if old else []), *self.releases.history()]
        proven = [name for name in dict.fromkeys(history) if name in running]
        for name in running:
            if name not in proven and name != self.release.name:
                self.lease.check()
                self.releases.remove(name)
        return proven

    def _stop_others(self, proven: list[str]) -> None:
        self.lease.check_now()
        for name in proven:
            if name != self.release.name:
                self.releases.stop(name)

    def _start_again(self, old: LiveRelease | None) -> None:
        """When the release that clients reach was stopped, here or by a deployment that was killed, start it again."""
        try:
            if old and self.releases.start(old.release):
                _log.error("starting the previous release %s again", old.release)
                rollout.wait(self.cluster, old.release, old.model_digest, self.config, self.lease.check)
        except StageError as problem:
            _log.error("NOBODY ANSWERS at %s: %s", live_name(self.release.service), problem)

    def _deliver(self, *, dry_run: bool = False) -> None:
        self.lease.check_now()
        for item in self.release.objects:
            self.cluster.apply(item, dry_run=dry_run)

    def _try_candidate(self) -> list[Check]:
        """Deliver and verify: the release runs and is the model that was exported, before any client reaches it."""
        rollout.wait_until_gone(self.cluster, self.release.name, self.config, self.lease.check)
        self._deliver()
        rollout.wait(self.cluster, self.release.name, self.release.model_digest, self.config, self.lease.check)
        url = self.release.url(self.config.cluster_domain)
        self.verifier.wait_until_reachable(url)
        return self.verifier.verify(url)

    def _share(self, old: LiveRelease | None) -> None:
        """As a canary, the release answers a growing share of the requests first."""
        if self.config.strategy != "canary":
            return
        try:
            if old and old.release != self.release.name:
                self.canary.grow()
        except BaseException:
            self.canary.end()
            raise

    def _promote(self, old: LiveRelease | None) -> list[Check]:
        """Switch clients to the release and watch it; when it fails, switch back."""
        url = self.release.live_url(self.config.cluster_domain)
        if old and old.release == self.release.name:
            _log.info("%s serves this release already", url)
            return self.verifier.verify_live(url)
        self.releases.switch(self.release, self.lease)
        try:
            checks = self.verifier.verify_live(url)
            self.verifier.watch(url, self.config.soak_seconds)
            self.lease.check_now()
        except BaseException:
            self.releases.switch_back(old, self.lease)
            raise
        finally:
            if self.config.strategy == "canary":
                self.canary.end()
        return checks

    def _give_up(self, proven: list[str], error: BaseException) -> None:
        """Say why, and remove the candidate, unless it has served before or a newer deployment works on it."""
        if isinstance(error, ActionNeeded):
            block = diagnose(self.cluster, self.release.name)
            _log.error("%s", block)
            self._try_to(lambda: self.releases.report_failure(self.release.name, error, block), "the report")
        if self.release.name in proven:
            return
        self._try_to(self._remove, self.release.name)

    def _remove(self) -> None:
        self.lease.check_now()
        self.releases.remove(self.release.name)

    @staticmethod
    def _try_to(act: Callable[[], None], what: str) -> None:
        try:
            act()
        except StageError as problem:
            _log.warning("%s is left to the next deployment: %s", what, problem)

    def _keep_books(self, proven: list[str], checks: list[Check]) -> None:
        """Record the release, and remove earlier ones beyond ``keep_releases``."""
        earlier = [name for name in proven if name != self.release.name]
        entry = {
            "release": self.release.name,
            "model_digest": self.release.model_digest,
            "checkpoint_digest": self.release.checkpoint_digest,
            "previous": earlier[0] if earlier else "",
            "latency": extract_latency(checks),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        try:
            self.releases.record(entry)
            for name in earlier[self.config.keep_releases :]:
                self.lease.check()
                self.releases.remove(name)
        except StageError as error:
            # The release serves and is proven: that stands.
            _log.warning("the ledger or earlier releases are left to the next deployment: %s", error)

    def _outcome(self, old: LiveRelease | None, uri: str, checks: list[Check], live: list[Check]) -> DeployResult:
        domain, release = self.config.cluster_domain, self.release
        previous = ""
        beside = self.config.strategy == "bluegreen" and old and old.release != release.name
        if old and beside and old.release in self.releases.running():
            previous = service_url(direct_name(old.release), release.namespace, domain)
        return DeployResult(
            release.live_url(domain),
            release.model_digest,
            reindex_required=old is None or old.checkpoint_digest != release.checkpoint_digest,
            previous_endpoint=previous,
            checks=checks,
            live=live,
            objects=[*release.objects, live_service(release)],
            about=release.about(uri),
        )


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, with which Kubernetes ends pods, leaves time to clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
