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


def require_same_weights(previous: LiveRelease | None, release: Release) -> None:
    """Raise InputError unless ``release`` serves the checkpoint that is live."""
    if previous and previous.checkpoint_digest != release.checkpoint_digest:
        raise InputError(
            f"strategy=canary would search a share of the queries in another model's index: {previous.release} serves "
            f"the checkpoint {previous.checkpoint_digest[:12]}, this release {release.checkpoint_digest[:12]}: use "
            f"bluegreen"
        )


class Canary:
    """The HTTPRoute at ``gateway`` that splits requests between the live release and ``release``."""

    def __init__(self, cluster: Cluster, config: DeployConfig, release: Release, verifier: CandidateVerifier) -> None:
        self._cluster, self._config, self._release, self._verifier = cluster, config, release, verifier

    def grow(self) -> None:
        """Give the release its shares one after the other, and watch each.

        Raises ActionNeeded when the release fails meanwhile.
        """
        url = self._release.url(self._config.cluster_domain)
        for percent in self._config.canary_steps:
            self._cluster.apply(render_route(self._config, self._release, percent))
            _log.info("%d %% of the requests go to %s", percent, self._release.name)
            self._verifier.watch(url, self._config.canary_step_seconds)

    def end(self) -> None:
        """Send all requests to the live release."""
        self._cluster.apply(render_route(self._config, self._release, 0))


def render_route(config: DeployConfig, release: Release, percent: int) -> Object:
    """Return the HTTPRoute with ``percent`` of the requests for ``release``, and the others for the live release."""
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
