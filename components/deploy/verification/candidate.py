"""Verifies a candidate by all its vectors at an address of its own, and again as the service that is live."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from components.core.errors import ActionNeeded
from components.core.serving.api import ApiName
from components.core.serving.bundle import Bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.component import DeployConfig
from components.deploy.verification.check_table import format_table
from components.deploy.verification.checks import Check
from components.deploy.verification.verify_endpoint import Requirements, list_failures, verify_endpoint

# Names and routes of a Service reach every node some time after it was made or changed.
_SETTLING_SECONDS = 60.0
_log = logging.getLogger(__name__)


class CandidateVerifier:
    """Of ``release``, which speaks ``api``, by the reference vectors of ``bundle`` and what else is ``wanted``.

    ``check`` is called while it waits and may raise.
    """

    def __init__(
        self,
        config: DeployConfig,
        bundle: Bundle,
        release: str,
        check: Callable[[], None],
        wanted: Requirements,
        api: ApiName,
    ) -> None:
        self._config, self._bundle, self._release, self._check = config, bundle, release, check
        self._wanted, self._api = wanted, api

    def verify_live(self, url: str) -> list[Check]:
        """Brief checks of the live service; for a while it may be the old release that still answers."""
        deadline = time.monotonic() + _SETTLING_SECONDS
        while True:
            try:
                return self.verify(url, brief=True)
            except ActionNeeded:
                if time.monotonic() > deadline:
                    raise
            self._check()
            time.sleep(self._config.health_check_interval)

    def watch(self, url: str, seconds: float) -> None:
        """Raises ActionNeeded when the service fails twice in a row within ``seconds``."""
        deadline = time.monotonic() + seconds
        failed = 0
        while time.monotonic() < deadline:
            time.sleep(self._config.health_check_interval)
            self._check()
            try:
                self.verify(url, brief=True, quiet=True)
                failed = 0
            except ActionNeeded:
                failed += 1
                if failed == 2:
                    raise

    def wait_until_reachable(self, url: str) -> None:
        deadline = time.monotonic() + _SETTLING_SECONDS
        with EmbeddingClient(url, self._config.served_model_name, timeout=5.0, api=self._api) as endpoint:
            while not endpoint.is_ready():
                self._check()
                if time.monotonic() > deadline:
                    raise ActionNeeded(
                        f"{url} cannot be reached from here although its pods are ready: deploy runs inside of the "
                        f"cluster; there, look for a NetworkPolicy, a mesh, or another cluster_domain"
                    )
                time.sleep(self._config.health_check_interval)

    def verify(self, url: str, *, brief: bool = False, quiet: bool = False) -> list[Check]:
        with EmbeddingClient(url, self._config.served_model_name, api=self._api) as endpoint:
            checks = verify_endpoint(endpoint, self._bundle, self._wanted, brief=brief)
        _log.log(logging.DEBUG if quiet else logging.INFO, "%s:\n%s", url, format_table(checks))
        if failed := list_failures(checks):
            raise ActionNeeded(f"release {self._release} is not what was exported: {'; '.join(failed)}")
        return checks
