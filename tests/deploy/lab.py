"""Where deployments are made to fail by their causes: the stand-in, or the cluster that KUBECONFIG names.

On a real cluster, run the tests inside of it (they ask Services by their names), in a namespace with nothing else, as
somebody who may do what manifests/rbac/deploy.yaml says and make quotas, limits and Services. They need

    KUBECONFIG                    its context names the namespace
    DEPLOY_TEST_IMAGE             the image `server`, where the cluster pulls it from
    DEPLOY_TEST_PREFIX            s3:// or gs:// prefix for the models; credentials as deploy takes them
    DEPLOY_TEST_STORAGE_SECRET    Secret by which KServe reads them; unset for a workload identity

and change nothing that they did not make. Without KUBECONFIG the stand-in serves, and nothing of this is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from kubernetes import client, config

from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.serving.bundle import Bundle, read_bundle
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.kubernetes.cluster import Cluster, connect
from components.deploy.kubernetes.releases import Releases
from components.deploy.objects.render import Release, render
from components.deploy.publishing.publish import ModelUris, publish_export
from components.deploy.targets import kserve
from tests.deploy.cluster.causes import consequence
from tests.deploy.cluster.kserve import Fate
from tests.deploy.conftest import Team
from tests.deploy.service import Service
from tests.exported import Exported
from tests.models import export_for_tests, nudge

IS_REAL = bool(os.environ.get("KUBECONFIG"))
NAME = "team/embed"
QUERY = "query 0 about valves"


@dataclass
class Lab:
    """One service, ``embed``, and models by name; ``uris`` say where the cluster reads them."""

    bundles: dict[str, Bundle]
    uris: dict[str, str]
    settings: dict[str, Any]
    text: str
    undo: list[Callable[[], None]] = field(default_factory=list)
    slow_down: Callable[[str], None] = lambda model: None

    @property
    def cluster(self) -> Cluster:
        return connect("")

    def config(self, model: str, **changes: Any) -> DeployConfig:
        return DeployConfig(**self.settings | {"model_uri": self.uris[model]} | changes)

    def deploy(self, model: str, **changes: Any) -> Any:
        return kserve.deploy(self.config(model, **changes), self.bundles[model], ModelUris(""))

    def release(self, model: str, **changes: Any) -> Release:
        """As deploy would render it."""
        settings = self.config(model, **changes)
        how = select_contract(settings)
        uri = settings.model_uri
        return render(settings, self.bundles[model], how, model_uri=uri, namespace=self.cluster.namespace)

    def releases(self) -> list[str]:
        return sorted(Releases(self.cluster, "embed").list_running())

    def core(self) -> client.CoreV1Api:
        """For what deploy itself never does."""
        settings = client.Configuration()
        config.load_kube_config(os.environ["KUBECONFIG"], client_configuration=settings)
        return client.CoreV1Api(client.ApiClient(settings))

    def ask(self, http: httpx.Client) -> np.ndarray:
        """What a client of the service gets."""
        url = f"http://embed-live.{self.cluster.namespace}.svc.cluster.local/v1/embeddings"
        body = {"model": NAME, "input": [self.text], "input_type": "query", "encoding_format": "float"}
        answer = http.post(url, json=body | {"truncate": "END"}).raise_for_status()
        return np.array(answer.json()["data"][0]["embedding"], dtype=np.float32)

    def expected(self, model: str) -> np.ndarray:
        bundle = self.bundles[model]
        (row,) = [n for n, p in enumerate(bundle.probes) if p.kind == "query" and p.text == self.text][:1]
        return bundle.tuned[row]


@contextmanager
def stand_in(team: Team) -> Iterator[Lab]:
    """The stand-in, where causes have their consequences."""
    stored = {*team.bundles, "base-of-b"}
    services = {name: Service(team.bundle(name), name=NAME) for name in team.bundles}
    services["base-of-b"] = Service(team.bundle("b"), _base, name=NAME)

    def serves(service: dict[str, Any]) -> Service:
        return services[service["spec"]["predictor"]["model"]["storageUri"].removeprefix("s3://models/")]

    team.cluster.serves = serves
    team.cluster.controller.consequence = lambda service: consequence(team.cluster.store, service, stored)
    rights = {"verbs": ["create", "delete", "get"], "apiGroups": [""], "resources": ["resourcequotas", "limitranges"]}
    team.cluster.rules = [*team.cluster.rules, rights]
    settings = team.config().model_dump(exclude_unset=True) | {"failure_patience": 0.05, "soak_seconds": 0.02}
    settings |= {"backend": "onnx", "serving_image": "registry.example.com/server:1"}
    uris = {name: f"s3://models/{name}" for name in (*stored, "nothing-here", "empty")}
    bundles = {name: team.bundle(name) for name in team.bundles}
    yield Lab(bundles, uris, settings, QUERY, slow_down=lambda model: team.fate(model, Fate(ready_after=5)))


def _base(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    return np.stack([service.vector(request["input_type"], text, service.base) for text in request["input"]])


@contextmanager
def real(minilm: Exported, small: EncoderConfig, directory: Path) -> Iterator[Lab]:
    """The cluster of KUBECONFIG, with MiniLM three times: as it is, and trained in two ways."""
    missing = [name for name in ("DEPLOY_TEST_IMAGE", "DEPLOY_TEST_PREFIX") if not os.environ.get(name)]
    if missing:
        pytest.skip(f"a real cluster needs {' and '.join(missing)}: see tests/deploy/lab.py")
    prefix = os.environ["DEPLOY_TEST_PREFIX"]
    exported = {
        "a": minilm.model,
        "b": _trained(small, directory / "b", 0.07),
        "base-of-b": _trained(small, directory / "base", 0.0),
    }
    bundles = {name: read_bundle(path) for name, path in exported.items()}
    uris = {name: publish_export(str(path), bundles[name].manifest, prefix) for name, path in exported.items()}
    uris |= {"nothing-here": f"{prefix}/nothing-here", "empty": f"{uris['a']}/onnx/tokenizer"}
    settings = {
        "backend": "onnx", "serving_image": os.environ["DEPLOY_TEST_IMAGE"], "service_name": "embed",
        "served_model_name": NAME, "storage_secret_name": os.environ.get("DEPLOY_TEST_STORAGE_SECRET", ""),
        "serving_cpu": "1", "serving_memory": "2Gi", "image_pull_secret_name": "", "failure_patience": 30.0,
        "schedule_timeout": 20.0, "soak_seconds": 5.0, "health_check_interval": 1.0,
    }  # fmt: skip
    text = next(probe.text for probe in bundles["a"].probes if probe.kind == "query")
    yield Lab(bundles, uris, settings, text)


def _trained(small: EncoderConfig, directory: Path, share: float) -> Path:
    encoder = load_base(small.model_copy(update={"query_max_length": 32, "passage_max_length": 64}))
    nudge(encoder, share)
    save_checkpoint(encoder, directory / "checkpoint")
    return export_for_tests(directory).model
