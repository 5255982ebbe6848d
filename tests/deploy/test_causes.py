"""Twenty-one kinds of failing deployment, each by its cause: the old release answers throughout, the cause is named.

This file runs unchanged on a real cluster when KUBECONFIG names one: see tests/deploy/lab.py. Each case more often:

    ROUNDS=5 python -m pytest tests/deploy/test_causes.py
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.kubernetes.errors import ApiRequest
from tests.deploy.lab import IS_REAL, Lab, real, stand_in
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("ROUNDS", "1"))
Preparation = Callable[[Lab, pytest.MonkeyPatch, Path], AbstractContextManager[None]]


@dataclass(frozen=True)
class Case:
    """``settings`` of the second deployment, or something ``prepared`` around it, make it fail."""

    error: type[StageError]
    message: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "b"
    uri: str = ""
    prepared: Preparation | None = None


@contextmanager
def quota(lab: Lab, *_: Any) -> Iterator[None]:
    body = {"metadata": {"name": "embed-test"}, "spec": {"hard": {"pods": "1"}}}
    lab.core().create_namespaced_resource_quota(lab.cluster.namespace, body)
    try:
        yield
    finally:
        lab.core().delete_namespaced_resource_quota("embed-test", lab.cluster.namespace)


@contextmanager
def limit(lab: Lab, *_: Any) -> Iterator[None]:
    body = {"metadata": {"name": "embed-test"}, "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]}}
    lab.core().create_namespaced_limit_range(lab.cluster.namespace, body)
    try:
        yield
    finally:
        lab.core().delete_namespaced_limit_range("embed-test", lab.cluster.namespace)


@contextmanager
def somebody_elses_service(lab: Lab, *_: Any) -> Iterator[None]:
    body = {
        "metadata": {"name": "other-live", "labels": {}},
        "spec": {"selector": {"app": "x"}, "ports": [{"port": 80}]},
    }
    lab.core().create_namespaced_service(lab.cluster.namespace, body)
    try:
        yield
    finally:
        lab.core().delete_namespaced_service("other-live", lab.cluster.namespace)


@contextmanager
def argo_cd(lab: Lab, *_: Any) -> Iterator[None]:
    """Another manager has a field of the same object, with another value."""
    (service,) = [item for item in lab.release("b").objects if item["kind"] == "InferenceService"]
    theirs = {**service, "spec": {"predictor": service["spec"]["predictor"] | {"minReplicas": 5, "maxReplicas": 5}}}
    below = f"namespaces/{lab.cluster.namespace}/inferenceservices/{service['metadata']['name']}"
    path = f"/apis/serving.kserve.io/v1beta1/{below}"
    query = [("fieldManager", "argocd-controller"), ("force", "true")]
    lab.cluster._request(ApiRequest("PATCH", path, "patch", "it", theirs, query))
    yield


@contextmanager
def slow_start(lab: Lab, *_: Any) -> Iterator[None]:
    """On the stand-in a release may be ready before any clock has moved."""
    lab.slow_down("b")
    yield


@contextmanager
def deleted_meanwhile(lab: Lab, *_: Any) -> Iterator[None]:
    name = lab.release("b", serving_image=NO_IMAGE).name
    ended = threading.Event()

    def delete() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(StageError):
                if lab.cluster.get("InferenceService", name):
                    lab.cluster.delete("InferenceService", name)
                    return

    person = threading.Thread(target=delete, daemon=True)
    person.start()
    try:
        yield
    finally:
        ended.set()
        person.join()


@contextmanager
def expired_token(_: Lab, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[None]:
    with changed_kubeconfig(monkeypatch, directory, user={"token": "expired"}):
        yield


@contextmanager
def unreachable_api(_: Lab, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[None]:
    with changed_kubeconfig(monkeypatch, directory, server="http://127.0.0.1:9"):
        yield


@contextmanager
def changed_kubeconfig(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *, user: dict[str, str] | None = None, server: str = ""
) -> Iterator[None]:
    content = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text(encoding="utf-8"))
    for entry in content["users"] if user else ():
        entry["user"] = user
    for entry in content["clusters"] if server else ():
        entry["cluster"] = {"server": server}
    (directory / "changed").write_text(yaml.safe_dump(content), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(directory / "changed"))
        yield


NO_IMAGE = "registry.invalid/nemotron-embed/server:1"
CASES: dict[str, Case] = {
    "image cannot be pulled": Case(
        ActionNeeded, r"cannot be pulled .*: check serving_image", {"serving_image": NO_IMAGE}
    ),
    "image name is none": Case(ActionNeeded, "InvalidImageName", {"serving_image": "registry.example.com/No/Image:1"}),
    "model has no files": Case(ActionNeeded, r"kserve-container ended \d+ times, last with code", uri="empty"),
    "out of memory": Case(ActionNeeded, "OOMKilled.*: raise serving_memory", {"serving_memory": "16Mi"}),
    "storage has no model": Case(
        ActionNeeded, r"storage-initializer ended \d+ times.*check the model's storage", uri="nothing-here"
    ),
    "no such service account": Case(
        ActionNeeded, 'serviceaccount "nobody" not found', {"serving_service_account": "nobody"}
    ),
    "no node has so many GPUs": Case(
        ActionNeeded, "Insufficient nvidia.com/gpu.*change serving_node_selector",
        {"serving_gpu_count": 1000, "serving_node_selector": {}},
    ),
    "no node has so many cores": Case(ActionNeeded, "Insufficient cpu", {"serving_cpu": "1000"}),
    "no such priority class": Case(
        ActionNeeded, "no PriorityClass with name nothing", {"serving_priority_class": "nothing"}
    ),
    "quota": Case(ActionNeeded, "exceeded quota: embed-test", prepared=quota),
    "limits of the namespace": Case(ActionNeeded, "maximum memory usage per Container is 64Mi", prepared=limit),
    "not ready in time": Case(
        ActionNeeded, "not ready within 0.001 s", {"rollout_timeout": 0.001}, prepared=slow_start
    ),
    "another model is served": Case(ActionNeeded, "cosine to fine-tuned", uri="a"),
    "base model is served": Case(ActionNeeded, "fine-tuned, not base", uri="base-of-b"),
    "slower than the budget": Case(ActionNeeded, r"latency .*p95 <= 0.0001 ms", {"latency_budget_ms": 0.0001}),
    "Service of somebody else": Case(
        InputError, "a Service other-live that deploy did not make", {"service_name": "other"},
        prepared=somebody_elses_service,
    ),
    "Argo CD manages it": Case(ActionNeeded, 'conflict.*"argocd-controller"', prepared=argo_cd),
    "deleted by a person": Case(
        ActionNeeded, "somebody deleted its InferenceService",
        {"serving_image": NO_IMAGE, "failure_patience": LIMIT_SECONDS, "rollout_timeout": LIMIT_SECONDS},
        prepared=deleted_meanwhile,
    ),
    "no such namespace": Case(StageError, "namespace no-such-namespace", {"serving_namespace": "no-such-namespace"}),
    "token expired": Case(ActionNeeded, "Unauthorized", prepared=expired_token),
    "API server is away": Case(Transient, "did not answer 6 times", prepared=unreachable_api),
}  # fmt: skip


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    if IS_REAL:
        values = [request.getfixturevalue(name) for name in ("minilm", "small_config")]
        with real(*values, tmp_path) as made:
            yield made
    else:
        with stand_in(request.getfixturevalue("team")) as made:
            yield made


@contextmanager
def clients(lab: Lab) -> Iterator[list[np.ndarray | str]]:
    """A client that asks the service all the time; what it got."""
    got: list[np.ndarray | str] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=LIMIT_SECONDS) as http:
            while not ended.is_set():
                try:
                    got.append(lab.ask(http))
                except httpx.HTTPError as error:
                    got.append(str(error))
                ended.wait(0.01)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        wait_for(lambda: got)
        yield got
        after = len(got)
        wait_for(lambda: len(got) > after + 2)
    finally:
        ended.set()
        thread.join()


def test_there_are_twenty_one() -> None:
    assert len(CASES) == 21


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_old_release_serves_on(
    lab: Lab, case: Case, round_: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lab.deploy("a")
    before = lab.releases()
    settings = case.settings | ({"model_uri": lab.uris[case.uri]} if case.uri else {})
    cluster = lab.cluster
    with clients(lab) as got:
        around = case.prepared(lab, monkeypatch, tmp_path) if case.prepared else contextlib.nullcontext()
        with around, pytest.raises(case.error, match=case.message) as raised:
            lab.deploy(case.model, **settings)
    assert "\n" not in str(raised.value)
    assert len(got) >= 2
    for answer in got:
        np.testing.assert_allclose(answer, lab.expected("a"), atol=1e-4)
    assert lab.releases() == before
    lease = cluster.get("Lease", "embed-deploy")
    assert lease and not lease["spec"].get("holderIdentity")
