"""Whatever is wrong with the next release: clients get the old one's vectors throughout, and the cause is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.deploy.component import check_on_this_machine
from tests.deploy.cluster.kserve import NEVER, Fate, crashed, unschedulable, waiting
from tests.deploy.cluster.store import Refusal
from tests.deploy.conftest import LIVE, Team
from tests.waiting import LIMIT_SECONDS, wait_for

Arrange = Callable[[Team], Any]
SECRET = "nvapi-0123456789abcdef"


@contextmanager
def clients(team: Team) -> Iterator[list[np.ndarray | str]]:
    """A client that asks the live service all the time; what it got."""
    got: list[np.ndarray | str] = []
    ended = threading.Event()
    text = {"input": ["query 0 about valves"], "input_type": "query", "truncate": "END", "encoding_format": "float"}

    def ask() -> None:
        with httpx.Client(proxy=team.cluster.proxy, timeout=LIMIT_SECONDS, verify=False) as client:
            while not ended.is_set():
                answer = client.post(f"http://{LIVE}.team-a.svc.cluster.local/v1/embeddings", json=text)
                vector = answer.json()["data"][0]["embedding"] if answer.is_success else answer.text
                got.append(np.array(vector, dtype=np.float32) if isinstance(vector, list) else vector)
                ended.wait(0.005)

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


def fate(**what: Any) -> Arrange:
    return lambda team: team.fate("b", Fate(**({"ready_after": NEVER} | what)))


def faulty(change: Callable[[np.ndarray], np.ndarray]) -> Arrange:
    return lambda team: team.faults.update(b=lambda _, __, vectors: change(vectors))


def base_model(team: Team) -> None:
    def base(service: Any, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
        return np.stack([service.vector(request["input_type"], text, service.base) for text in request["input"]])

    team.faults["b"] = base


def refuses(kind: str, code: int, reason: str, message: str) -> Arrange:
    """Admission: webhooks and quota are asked in dry runs too."""

    def arrange(team: Team) -> None:
        def admission(body: dict[str, Any]) -> None:
            if body["kind"] == kind:
                raise Refusal(code, reason, message)

        team.cluster.store.admission = admission

    return arrange


def answers(path_part: str, code: int, message: str, methods: tuple[str, ...] = ("PATCH",)) -> Arrange:
    """The API server answers so to some requests."""

    def arrange(team: Team) -> None:
        team.cluster.fault = lambda method, path: (code, message) if method in methods and path_part in path else None

    return arrange


def broken_once_live(team: Team) -> None:
    """The candidate is right, and behind the live Service something is wrong."""
    (old,) = team.releases()
    team.cluster.breaks = lambda service, release: service == LIVE and release != old


def owned_by_argo(team: Team) -> None:
    """Another manager sets a field of the same object to another value."""

    def admission(body: dict[str, Any]) -> None:
        if body["kind"] == "InferenceService":
            team.cluster.store.admission = lambda _: None
            mine = {**body, "spec": {"predictor": {"minReplicas": 5}}}
            name = body["metadata"]["name"]
            how = {"manager": "argocd-controller", "force": True, "dry_run": False}
            team.cluster.store.apply("inferenceservices", name, mine, **how)
            raise Refusal(429, "TooManyRequests", "try again")

    team.cluster.store.admission = admission


def old_kserve(team: Team) -> None:
    """A schema without a field that is sent: the real server's answer is 500."""
    message = (
        "failed to create typed patch object (team-a/embed; serving.kserve.io/v1beta1, Kind=InferenceService): "
        ".spec.predictor.deploymentStrategy: field not declared in schema"
    )
    answers("inferenceservices", 500, message)(team)


def without_kserve(team: Team) -> None:
    team.cluster.store.installed -= {"inferenceservices", "servingruntimes"}


def without_rights(team: Team) -> None:
    team.cluster.rules = [rule for rule in team.cluster.rules if "servingruntimes" not in rule["resources"]]


def someone_elses_service(team: Team) -> None:
    team.cluster.store.objects["services", LIVE]["metadata"]["labels"] = {}


def unreachable(team: Team) -> None:
    """A NetworkPolicy that lets nobody through to the candidate."""
    genuine = team.cluster.forward
    (old,) = team.releases()
    team.cluster.forward = lambda method, host, path, body: (
        genuine(method, host, path, body) if host.startswith((LIVE, old)) else (502, "no route")
    )


# Each attempt has a name of its own.
QUOTA = 'pods "embed-{age}" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'
POD_SECURITY = 'pods "embed-{age}" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
WEBHOOK = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: no such runtime'


def replica_failure(message: str) -> dict[str, Any]:
    return {"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]}


CASES: dict[str, tuple[Arrange, type[StageError], str]] = {
    "image cannot be pulled": (
        fate(pod=waiting("ImagePullBackOff", "unauthorized")),
        ActionNeeded,
        "cannot be pulled .*unauthorized.*: check serving_image and image_pull_secret_name",
    ),
    "image name is none": (fate(pod=waiting("InvalidImageName", "bad")), ActionNeeded, "InvalidImageName bad"),
    "crash loop": (fate(pod=crashed(1, 3)), ActionNeeded, "kserve-container ended 3 times, last with code 1"),
    "out of memory": (fate(pod=crashed(137, 1, "OOMKilled")), ActionNeeded, "OOMKilled.*: raise serving_memory"),
    "storage refuses": (
        fate(pod=crashed(1, 2, init=True)),
        ActionNeeded,
        "storage-initializer ended 2 times.*check the model's storage",
    ),
    "secret is missing": (
        fate(pod=waiting("CreateContainerConfigError", 'secret "models-s3" not found')),
        ActionNeeded,
        'secret "models-s3" not found: make what it names',
    ),
    "no node": (
        fate(pod=unschedulable("0/5 nodes are available: 5 Insufficient nvidia.com/gpu")),
        ActionNeeded,
        "Insufficient nvidia.com/gpu.*change serving_node_selector",
    ),
    "quota": (fate(**replica_failure(QUOTA)), ActionNeeded, "exceeded quota: gpus"),
    "pod security": (fate(**replica_failure(POD_SECURITY)), ActionNeeded, "violates PodSecurity"),
    "never ready": (fate(), ActionNeeded, r"not ready within 0.5 s \(0 of 1 pods available\): raise rollout_timeout"),
    "ready, but of other pods": (fate(stale=True), ActionNeeded, "waiting for its Deployment to be brought up to date"),
    "KServe finds it invalid": (
        fate(
            has_deployment=False,
            service={"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"reason": "NoRuntime"}}},
        ),
        ActionNeeded,
        r"KServe has made no Deployment for it \(NoRuntime \)",
    ),
    "KServe's controller is down": (fate(has_deployment=False), ActionNeeded, "KServe has made no Deployment"),
    "deleted by a person": (fate(vanishes=True), ActionNeeded, "somebody deleted its InferenceService"),
    "webhook refuses": (refuses("InferenceService", 400, "BadRequest", WEBHOOK), ActionNeeded, "denied the request"),
    "invalid": (
        refuses("InferenceService", 422, "Invalid", "spec.predictor: Invalid value"),
        InputError,
        "finds InferenceService embed-r-.* invalid: spec.predictor",
    ),
    "quota of objects": (
        refuses("Service", 403, "Forbidden", 'services "x" is forbidden: exceeded quota: services=10'),
        ActionNeeded,
        "refuses Service embed-r-.*exceeded quota",
    ),
    "field unknown to KServe": (old_kserve, InputError, "does not know a field of InferenceService.*0.15 or later"),
    "no KServe": (without_kserve, InputError, "does not know serving.kserve.io/v1beta1 InferenceService: install"),
    "refused at apply": (answers("servingruntimes", 403, "forbidden"), ActionNeeded, "may not patch ServingRuntime"),
    "token expired": (
        answers("/deployments/", 401, "Unauthorized", methods=("GET",)),
        ActionNeeded,
        "may not get Deployment .*Unauthorized",
    ),
    "rights are missing": (
        without_rights,
        ActionNeeded,
        r'add to its Role \{apiGroups: \["serving.kserve.io"\], resources: \[servingruntimes\], verbs: \[create, patch',
    ),
    "Argo CD manages it": (owned_by_argo, ActionNeeded, 'conflict with "argocd-controller": .spec.predictor.minRep'),
    "API server is down": (answers("", 503, "no", methods=("PATCH",)), Transient, "did not answer 6 times"),
    "Service of somebody else": (someone_elses_service, InputError, "a Service embed-live that deploy did not make"),
    "cannot be reached": (unreachable, ActionNeeded, "cannot be reached from here although its pods are ready"),
    "base model is served": (base_model, ActionNeeded, "fine-tuned, not base"),
    "garbage is served": (faulty(lambda vectors: vectors[:, ::-1]), ActionNeeded, "cosine to fine-tuned"),
    "NaN is served": (faulty(lambda vectors: vectors * np.nan), ActionNeeded, "NaN or infinity"),
    "wrong only once it is live": (broken_once_live, ActionNeeded, "cosine to fine-tuned"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_old_release_serves_on(team: Team, case: tuple[Arrange, type[StageError], str]) -> None:
    arrange, kind, message = case
    team.deploy("a")
    before = team.releases()
    expected = team.bundle("a").tuned[0]
    with clients(team) as got:
        arrange(team)
        with pytest.raises(kind, match=message) as raised:
            team.deploy("b", rollout_timeout=0.5)
    assert "\n" not in str(raised.value)
    # Only a fault that shows behind the live Service alone is ever seen by clients, until the roll-back.
    for answer in got[-2:] if arrange is broken_once_live else got:
        np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert team.live() == "a"
    # Nothing of the candidate is left, and the next deployment finds the lease free.
    team.cluster.fault = lambda *_: None
    assert team.releases() == before
    assert {name for plural, name in team.cluster.store.objects if name.startswith("embed-r-")} == {
        name
        for release in before
        for name in (release, f"{release}-direct", f"{release}-predictor", f"{release}-predictor-0")
    }
    assert team.cluster.store.objects["leases", "embed-deploy"]["spec"]["holderIdentity"] == ""


def test_after_a_failure_the_repaired_release_is_deployed(team: Team) -> None:
    team.deploy("a")
    base_model(team)
    with pytest.raises(ActionNeeded):
        team.deploy("b")
    team.faults.clear()
    team.deploy("b")
    assert team.live() == "b"


def test_a_release_whose_removal_takes_time_can_be_deployed_again(team: Team) -> None:
    """KServe's finalizer keeps a deleted InferenceService for a while."""
    team.deploy("a")
    base_model(team)
    team.cluster.controller.finalizing = 5
    with pytest.raises(ActionNeeded):
        team.deploy("b")
    assert len(team.releases()) == 2
    team.faults.clear()
    team.deploy("b")
    assert team.live() == "b"


def test_a_first_release_that_fails_leaves_nothing(team: Team) -> None:
    team.cluster.breaks = lambda service, _: service == LIVE
    with pytest.raises(ActionNeeded):
        team.deploy("a")
    # Beside the reason why it failed.
    assert {plural for plural, _ in team.cluster.store.objects} == {"leases", "configmaps"}


def test_nothing_is_written_before_all_is_allowed(team: Team) -> None:
    without_rights(team)
    with pytest.raises(ActionNeeded, match="lacks rights"):
        team.deploy("a")
    assert team.cluster.store.objects == {}


def test_dry_run_comes_first(team: Team) -> None:
    refuses("PodDisruptionBudget", 400, "BadRequest", 'admission webhook "x" denied the request: no')(team)
    with pytest.raises(ActionNeeded, match="denied the request"):
        team.deploy("a")
    # Beside the reason why it failed.
    assert {plural for plural, _ in team.cluster.store.objects} == {"leases", "configmaps"}


def test_the_diagnosis_shows_what_a_person_needs_and_no_secret(team: Team, caplog: pytest.LogCaptureFixture) -> None:
    log = f"loading model\nNGC_API_KEY={SECRET}\nERROR: unsupported opset 42"
    team.fate("a", Fate(NEVER, pod=crashed(1, 3), log=log, event="Back-off restarting failed container"))
    with pytest.raises(ActionNeeded):
        team.deploy("a")
    (block,) = [record.getMessage() for record in caplog.records if "Diagnosis" in record.getMessage()]
    for expected in (
        "InferenceService Ready=False",
        "kserve-container lastState: terminated reason=Error exitCode=1 restarts=3",
        "Event Pod embed-r-",
        "Back-off restarting failed container",
        "before its restart:",
        "ERROR: unsupported opset 42",
    ):
        assert expected in block
    assert SECRET not in caplog.text


def test_another_namespace_without_rights_is_named(team: Team) -> None:
    with pytest.raises(ActionNeeded, match="lacks rights in namespace nowhere"):
        team.deploy("a", serving_namespace="nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set release_prefix, or deploy.target=local"),
        ({"release_prefix": "s3://models"}, "needs a cluster, .* set deploy.target=local"),
        ({"target": "gitops"}, "set release_prefix"),
    ],
)
def test_a_run_on_one_machine_says_at_once_that_it_needs_a_cluster(
    team: Team, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with pytest.raises(InputError, match=message):
        check_on_this_machine(team.config(**settings))
    check_on_this_machine(team.config(target="local"))
