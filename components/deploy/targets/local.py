"""The target `local`: blue/green on one machine. A candidate proves itself before the running service is touched."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import Any

from components import __version__
from components.core.errors import ActionNeeded, InputError
from components.core.serving.bundle import Bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.backends.compatibility import check_compatibility
from components.deploy.backends.contracts import ONNX_SERVER
from components.deploy.component import DeployConfig
from components.deploy.local.process import (
    ServerProcess,
    find_free_port,
    is_port_free,
    start_server,
    stop_server,
    wait_until_ready,
)
from components.deploy.local.releases_on_disk import StateDirectory, stop_service
from components.deploy.publishing.publish import ModelUris
from components.deploy.publishing.storage import find_directory
from components.deploy.result import DeployResult
from components.deploy.verification.check_table import format_table
from components.deploy.verification.checks import Check
from components.deploy.verification.retrieval_check import TestSet
from components.deploy.verification.verify_endpoint import Requirements, list_failures, verify_endpoint

_LOOPBACK = "127.0.0.1"
_log = logging.getLogger(__name__)


def deploy(config: DeployConfig, bundle: Bundle, models: ModelUris, test_set: TestSet | None = None) -> DeployResult:
    """Serve the exported model, a directory of this machine, at ``host_port`` and prove it by ``bundle``.

    When anything fails, what served before serves on.
    Raises InputError for a port that another process holds and for a model that is not whole or not the bundle's;
    ActionNeeded when the release does not start or does not pass verification; Transient when another deployment of
    the same name is under way.
    """
    if not models.exported_model:
        raise InputError("target=local serves exported_model, and there is none: give its directory")
    model = find_directory(models.exported_model)
    if model is None:
        raise InputError(
            f"exported_model is at {models.exported_model}: target=local serves only a directory of this machine"
        )
    check_compatibility(config, bundle, ONNX_SERVER)
    home = StateDirectory(config.state_dir, config.served_model_name)
    with home.lock():
        return _LocalDeployment(config, bundle, home, Requirements(config.latency_budget_ms, None, test_set)).run(model)


class _LocalDeployment:
    def __init__(self, config: DeployConfig, bundle: Bundle, home: StateDirectory, wanted: Requirements) -> None:
        self.config, self.bundle, self.home, self.wanted = config, bundle, home, wanted
        self.digest = bundle.manifest.digest
        self.state = home.read()
        self.served_before = self.state.good[0] if self.state.good else None

    def run(self, model: Path) -> DeployResult:
        self._check_port()
        self._install(model)
        self._finish_what_was_cut_short()
        running = self.state.live
        if running and self._is_wanted(running):
            _log.info("%s serves this release already", running.url)
            checks = self._examine(running)
            if not list_failures(checks):
                return self._outcome(running, checks, checks)
            _log.error("it does not pass: it is replaced")
        checks = self._try_candidate()
        service, live = self._switch()
        self.home.prune(self.state)
        return self._outcome(service, checks, live)

    def _outcome(self, service: ServerProcess, checks: list[Check], live: list[Check]) -> DeployResult:
        reindex = self.served_before != self.digest
        return DeployResult(service.url, service.digest, reindex, checks=checks, live_checks=live, service=service)

    def _check_port(self) -> None:
        port, ours = self.config.host_port, self.state.live
        if port and not is_port_free(self.config.host, port) and not (ours and ours.port == port and ours.is_running()):
            raise InputError(f"port {port} is taken by another process: end that, or choose another host_port")

    def _install(self, model: Path) -> None:
        digest = self.home.install(model).digest
        if digest != self.digest:
            raise InputError(
                f"exported_model has digest {digest[:12]}, deploy_bundle that of {self.digest[:12]}: "
                f"give the two that one export made"
            )

    def _finish_what_was_cut_short(self) -> None:
        """A deployment that was killed may have left a candidate, or a switch half done."""
        if self.state.candidate:
            stop_server(self.state.candidate)
            self._save(candidate=None)
        if self.state.previous:
            if self.state.live:
                stop_server(self.state.live)
            self._roll_back()

    def _is_wanted(self, service: ServerProcess) -> bool:
        wanted = (self.digest, __version__, self.config.host, self.config.host_port or service.port)
        return service.is_running() and (service.digest, service.version, service.host, service.port) == wanted

    def _try_candidate(self) -> list[Check]:
        candidate = self._start(_LOOPBACK, find_free_port(_LOOPBACK), "candidate")
        self._save(candidate=candidate)
        try:
            return self._require(candidate)
        finally:
            stop_server(candidate)
            self._save(candidate=None)

    def _switch(self) -> tuple[ServerProcess, list[Check]]:
        """Replace the running service; when the new one fails, the old one is started again."""
        old = self.state.live if self.state.live and self.state.live.is_running() else None
        self._save(previous=old)
        if old:
            stop_server(old)
        service = None
        try:
            host = self.config.host
            service = self._start(host, self.config.host_port or find_free_port(host), "service")
            self._save(live=service)
            checks = self._require(service, brief=True)
        except BaseException:
            if service:
                stop_server(service)
            self._roll_back()
            raise
        good = [self.digest, *(digest for digest in self.state.good if digest != self.digest)]
        self._save(previous=None, good=good)
        return service, checks

    def _roll_back(self) -> None:
        old = self.state.previous
        if old is None:
            self._save(live=None)
            return
        _log.error("starting the previous release %s again", old.digest[:12])
        release, log_file = self.home.get_release_directory(old.digest), self.home.get_log_file(old.digest, "service")
        service = start_server(release, name=old.name, digest=old.digest, host=old.host, port=old.port, log=log_file)
        self._save(live=service, previous=None)
        wait_until_ready(service, self.config.health_check_timeout)

    def _start(self, host: str, port: int, role: str) -> ServerProcess:
        release, log_file = self.home.get_release_directory(self.digest), self.home.get_log_file(self.digest, role)
        name = self.config.served_model_name
        return start_server(release, name=name, digest=self.digest, host=host, port=port, log=log_file)

    def _require(self, service: ServerProcess, *, brief: bool = False) -> list[Check]:
        wait_until_ready(service, self.config.health_check_timeout)
        checks = self._examine(service, brief=brief)
        if failed := list_failures(checks):
            raise ActionNeeded(f"release {self.digest[:12]} is not what was exported: {'; '.join(failed)}")
        return checks

    def _examine(self, service: ServerProcess, *, brief: bool = False) -> list[Check]:
        with EmbeddingClient(service.url, service.name) as endpoint:
            checks = verify_endpoint(endpoint, self.bundle, self.wanted, brief=brief)
        _log.info("%s:", service.url)
        for line in format_table(checks).splitlines():
            _log.info("%s", line)
        return checks

    def _save(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)
        self.home.write(self.state)


def serve_in_foreground(config: DeployConfig, service: ServerProcess) -> None:
    """Wait until SIGINT or SIGTERM, then stop the service. Raises ActionNeeded when it ends before."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while service.is_running():
            time.sleep(0.2)
    except KeyboardInterrupt:
        stop_service(config.state_dir, config.served_model_name)
    else:
        raise ActionNeeded(f"the server ended by itself: read {service.log}")
    finally:
        signal.signal(signal.SIGTERM, previous)
