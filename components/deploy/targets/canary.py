"""A growing share of the requests for a candidate, through a route of Gateway API.

Only between two releases of one checkpoint, as when the image, the precision or the GPU changes: vectors of two models
cannot be compared, so a share of the queries would be searched in the wrong index.
"""

from __future__ import annotations

import logging

from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.deploy.component import DeployConfig
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.kubernetes.releases import LiveRelease
from components.deploy.labels import as_object, direct_name, live_name, metadata_labels
from components.deploy.objects.render import Release
from components.deploy.verification.candidate import CandidateVerifier

_log = logging.getLogger(__name__)


def require_same_weights(old: LiveRelease | None, release: Release) -> None:
    """Raise InputError unless ``release`` serves the checkpoint that is live."""
    if old and old.checkpoint_digest != release.checkpoint_digest:
        raise InputError(
            f"strategy=canary would search a share of the queries in another model's index: {old.release} serves the "
            f"checkpoint {old.checkpoint_digest[:12]}, this release {release.checkpoint_digest[:12]}: use bluegreen"
        )


class Canary:
    """The route of ``release``'s service at ``gateway``."""

    def __init__(self, cluster: Cluster, config: DeployConfig, release: Release, verifier: CandidateVerifier) -> None:
        self._cluster, self._config, self._release, self._verifier = cluster, config, release, verifier

    def grow(self) -> None:
        """Give the release its shares, and watch each. Raises ActionNeeded when it fails meanwhile."""
        url = self._release.url(self._config.cluster_domain)
        for percent in self._config.canary_steps:
            self._cluster.apply(route(self._config, self._release, percent))
            _log.info("%d %% of the requests go to %s", percent, self._release.name)
            self._verifier.watch(url, self._config.canary_step_seconds)

    def end(self) -> None:
        """All requests go to what is live."""
        self._cluster.apply(route(self._config, self._release, 0))


def route(config: DeployConfig, release: Release, percent: int) -> Object:
    """The HTTPRoute with ``percent`` of the requests for ``release``, and the others for what is live."""
    namespace, _, name = config.gateway.partition("/")
    shares = [(live_name(config.service_name), 100 - percent), (direct_name(release.name), percent)]
    spec: Object = {
        "parentRefs": [{"name": name, "namespace": namespace}],
        "rules": [{"backendRefs": [{"name": to, "port": 80, "weight": share} for to, share in shares if share]}],
    }
    if config.gateway_host:
        spec["hostnames"] = [config.gateway_host]
    labels = metadata_labels(config.service_name)
    return as_object(
        "gateway.networking.k8s.io/v1", "HTTPRoute", live_name(config.service_name), labels, release.namespace, spec
    )
