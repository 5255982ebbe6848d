"""The target `kserve`: publish, render, deliver, verify, promote. Clients reach the old release until the new one has
proven itself behind an address of its own, and reach it again when the new one fails after the switch."""

from __future__ import annotations

import contextlib
import datetime
import logging
import signal
import threading
from collections.abc import Callable, Iterator

from components.core.errors import ActionNeeded, StageError
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
    """Serve one of ``models`` in the cluster and verify it by ``bundle``, and by ``test_set`` when there is one.

    When anything fails, what served before serves on.

    Raises InputError for settings that contradict each other, the model or the cluster; ActionNeeded when rights are
    missing, or the release does not start or does not pass verification; Transient when a newer deployment has come
    or the cluster stays unavailable.
    """
    contract = select_contract(config)
    check_compatibility(config, bundle, contract)
    cluster = connect(config.serving_namespace)
    permissions.require_permissions(cluster, config)
    uri = publish_model(config, bundle, contract, models)
    release = render(config, bundle, contract, model_uri=uri, namespace=cluster.namespace)
    releases = Releases(cluster, config.service_name)
    lease = DeployLease(cluster, config.service_name, poll=min(1.0, config.health_check_interval))
    with _terminated_as_interrupted(), lease.hold(timeout=config.rollout_timeout):
        requirements = Requirements(config.latency_budget_ms, releases.read_latency(), test_set)
        proof = contract.apply_precision(bundle)
        verifier = CandidateVerifier(config, proof, release.name, lease.check, requirements, contract.api)
        return _ClusterDeployment(config, cluster, releases, release, lease, verifier).run(uri)


class _ClusterDeployment:
    """One release on its way to be live, while ``lease`` keeps other deployments away."""

    def __init__(
        self,
        config: DeployConfig,
        cluster: Cluster,
        releases: Releases,
        release: Release,
        lease: DeployLease,
        verifier: CandidateVerifier,
    ) -> None:
        self.config, self.cluster, self.releases, self.release = config, cluster, releases, release
        self.lease, self.verifier = lease, verifier
        self.canary = Canary(cluster, config, release, verifier)

    def run(self, uri: str) -> DeployResult:
        previous = self.releases.read_live()
        if self.config.strategy == "canary":
            require_same_weights(previous, self.release)
        verified_releases = self._remove_leftovers(previous)
        try:
            self._apply_objects(dry_run=True)
            if self.config.strategy == "recreate":
                self._stop_others(verified_releases)
            checks = self._start_and_verify()
            self._split_canary_traffic(previous)
            live_checks = self._promote(previous)
        except BaseException as error:
            self._roll_back(verified_releases, error)
            self._restore_previous(previous)
            raise
        self._record_release(verified_releases, checks)
        return self._result(previous, uri, checks, live_checks)

    def _remove_leftovers(self, previous: LiveRelease | None) -> list[str]:
        """Remove candidates of deployments that were killed, for they hold GPUs.

        Return the releases that run and were live once, which means verified; the present one first.
        """
        running = self.releases.list_running()
        history = [*([previous.release] if previous else []), *self.releases.read_history()]
        verified_releases = [name for name in dict.fromkeys(history) if name in running]
        for name in running:
            if name not in verified_releases and name != self.release.name:
                self.lease.check()
                self.releases.remove(name)
        return verified_releases

    def _stop_others(self, verified_releases: list[str]) -> None:
        self.lease.check_now()
        for name in verified_releases:
            if name != self.release.name:
                self.releases.stop(name)

    def _apply_objects(self, *, dry_run: bool = False) -> None:
        self.lease.check_now()
        for item in self.release.objects:
            self.cluster.apply(item, dry_run=dry_run)

    def _start_and_verify(self) -> list[Check]:
        """Start the release and verify it at an address of its own, before any client reaches it."""
        rollout.wait_until_gone(self.cluster, self.release.name, self.config, self.lease.check)
        self._apply_objects()
        self._wait_until_ready(self.release.name, self.release.model_digest)
        url = self.release.url(self.config.cluster_domain)
        self.verifier.wait_until_reachable(url)
        return self.verifier.verify(url)

    def _wait_until_ready(self, name: str, digest: str) -> None:
        rollout.wait_until_ready(self.cluster, name, digest, self.config, self.lease.check)

    def _split_canary_traffic(self, previous: LiveRelease | None) -> None:
        """With strategy=canary, give the release a growing share of the requests first."""
        if self.config.strategy != "canary":
            return
        try:
            if previous and previous.release != self.release.name:
                self.canary.grow()
        except BaseException:
            self.canary.end()
            raise

    def _promote(self, previous: LiveRelease | None) -> list[Check]:
        """Switch clients to the release and watch it; when it fails, switch back."""
        url = self.release.live_url(self.config.cluster_domain)
        if previous and previous.release == self.release.name:
            _log.info("%s serves this release already", url)
            return self.verifier.verify_live(url)
        self.releases.switch(self.release, self.lease)
        try:
            checks = self.verifier.verify_live(url)
            self.verifier.watch(url, self.config.soak_seconds)
            self.lease.check_now()
        except BaseException:
            self.releases.switch_back(previous, self.lease)
            raise
        finally:
            if self.config.strategy == "canary":
                self.canary.end()
        return checks

    def _roll_back(self, verified_releases: list[str], error: BaseException) -> None:
        """Report why it failed, and remove the candidate, unless it has served before or is a newer deployment's."""
        if isinstance(error, ActionNeeded):
            diagnosis = diagnose(self.cluster, self.release.name)
            _log.error("%s", diagnosis)
            self._best_effort(lambda: self.releases.report_failure(self.release.name, error, diagnosis), "the report")
        if self.release.name not in verified_releases:
            self._best_effort(self._remove_candidate, self.release.name)

    def _remove_candidate(self) -> None:
        self.lease.check_now()
        self.releases.remove(self.release.name)

    def _restore_previous(self, previous: LiveRelease | None) -> None:
        """Start the release that clients reach again when it was stopped, here or by a deployment that was killed."""
        try:
            if previous and self.releases.start(previous.release):
                _log.error("starting the previous release %s again", previous.release)
                self._wait_until_ready(previous.release, previous.model_digest)
        except StageError as problem:
            _log.error("NOBODY ANSWERS at %s: %s", live_name(self.release.service), problem)

    @staticmethod
    def _best_effort(act: Callable[[], None], what: str) -> None:
        try:
            act()
        except StageError as problem:
            _log.warning("%s is left to the next deployment: %s", what, problem)

    def _record_release(self, verified_releases: list[str], checks: list[Check]) -> None:
        """Add the release to the ledger, and remove earlier ones beyond ``keep_releases``."""
        earlier = [name for name in verified_releases if name != self.release.name]
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
            # The release serves and is verified: that stands.
            _log.warning("the ledger or earlier releases are left to the next deployment: %s", error)

    def _result(
        self, previous: LiveRelease | None, uri: str, checks: list[Check], live_checks: list[Check]
    ) -> DeployResult:
        domain, release = self.config.cluster_domain, self.release
        previous_endpoint = ""
        runs_beside = self.config.strategy == "bluegreen" and previous and previous.release != release.name
        if previous and runs_beside and previous.release in self.releases.list_running():
            previous_endpoint = service_url(direct_name(previous.release), release.namespace, domain)
        return DeployResult(
            release.live_url(domain),
            release.model_digest,
            reindex_required=previous is None or previous.checkpoint_digest != release.checkpoint_digest,
            previous_endpoint=previous_endpoint,
            checks=checks,
            live_checks=live_checks,
            objects=[*release.objects, live_service(release)],
            about=release.about(uri),
        )


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Turn SIGTERM, with which Kubernetes ends pods, into KeyboardInterrupt, so that a deployment cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
