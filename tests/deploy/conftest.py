"""A stand-in cluster with three models that need no weights, and deployments to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import certifi
import pytest

from components.core.kubernetes import client
from components.core.serving.bundle import Bundle, read_bundle
from components.deploy.component import DeployConfig
from components.deploy.git import sync_status
from components.deploy.kubernetes import rollout
from components.deploy.labels import MODEL_DIGEST
from components.deploy.publishing.publish import ModelUris
from components.deploy.result import DeployResult
from components.deploy.targets import kserve
from components.deploy.verification import candidate
from tests.deploy.bundles import write_bundle
from tests.deploy.cluster.kserve import Fate
from tests.deploy.cluster.server import StandInCluster, running, write_kubeconfig
from tests.deploy.service import Fault, Service
from tests.waiting import LIMIT_SECONDS, SleepClock

LIVE = "embed-live"


@dataclass
class Team:
    """The cluster and the models of a team; ``faults`` make the served model of a bundle wrong."""

    cluster: StandInCluster
    bundles: dict[str, Path]
    faults: dict[str, Fault] = field(default_factory=dict)

    def bundle(self, model: str) -> Bundle:
        return read_bundle(self.bundles[model])

    def config(self, **changes: Any) -> DeployConfig:
        """Return settings whose seconds are hundredths, of a clock that only sleeping moves."""
        quick = {
            "service_name": "embed", "served_model_name": "team/embed", "rollout_timeout": LIMIT_SECONDS,
            "schedule_timeout": 0.1, "failure_patience": 0.1, "health_check_interval": 0.01, "soak_seconds": 0.05,
        }  # fmt: skip
        return DeployConfig(**(quick | changes))

    def deploy(self, model: str, **changes: Any) -> DeployResult:
        models = ModelUris(f"s3://models/{model}", f"s3://checkpoints/{model}")
        return kserve.deploy(self.config(**changes), self.bundle(model), models)

    def live(self) -> str | None:
        """Name of the model that clients reach."""
        alias = self.cluster.store.objects.get(("services", LIVE))
        digests = {self.bundle(model).manifest.digest: model for model in self.bundles}
        return digests[alias["metadata"]["annotations"][MODEL_DIGEST]] if alias else None

    def releases(self) -> list[str]:
        """Names of the InferenceServices."""
        return [name for plural, name in self.cluster.store.objects if plural == "inferenceservices"]

    def fate(self, model: str, fate: Fate) -> None:
        self.cluster.controller.fates[self.bundle(model).manifest.digest] = fate


@pytest.fixture
def team(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    bundles = {name: write_bundle(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"), 1)}
    by_digest = {read_bundle(path).manifest.digest: name for name, path in bundles.items()}
    services = {name: Service(read_bundle(path), name="team/embed") for name, path in bundles.items()}

    def serves(service: dict[str, Any]) -> Service:
        model = by_digest[service["spec"]["predictor"]["annotations"][MODEL_DIGEST]]
        services[model].fault = team.faults.get(model)
        return services[model]

    cluster = StandInCluster(serves)
    team = Team(cluster, bundles)
    monkeypatch.setattr(client, "RETRIES", replace(client.RETRIES, first_wait=0.01))
    monkeypatch.setattr(candidate, "_SETTLING_SECONDS", 0.5)
    # As many looks as on an idle machine: no limit is reached because the machine is busy.
    for module in (candidate, rollout, sync_status):
        monkeypatch.setattr(module, "time", SleepClock())
    with running(cluster):
        write_kubeconfig(tmp_path / "kubeconfig", cluster)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HTTP_PROXY", cluster.proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        # Every httpx.Client reads all authorities of the world, for half of a deployment's time here: one is enough.
        end = "-----END CERTIFICATE-----\n"
        (tmp_path / "ca.pem").write_text(certifi.contents().partition(end)[0] + end)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield team
