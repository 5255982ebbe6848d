"""Whatever an object store does: no silent corruption, nothing half taken for whole, no clean-up by hand.

Three kinds of work are held against each fault: the ledger of paid answers, training states, and the release of a
model. They run against this repository's own server, and against Ceph's gateway where its programs are installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from components.core.errors import StageError
from components.core.retry import RetryPolicy
from components.core.serving.model_manifest import (
    MODEL_MANIFEST,
    ModelManifest,
    compute_digest,
    hash_files,
    read_model_manifest,
)
from components.core.store import bucket as bucket_module
from components.core.store import open_store
from components.core.store.errors import to_stage_error
from components.deploy.publishing.publish import publish_export
from components.finetune.resume.checkpoints import Checkpoints
from components.sdg.llm.ledger import open_ledger
from tests.deploy.bundles import write_bundle
from tests.storage.ceph import ceph_s3, why_no_ceph
from tests.storage.faults import LASTING, PASSING
from tests.storage.proxy import Fault, Proxy, proxy_before
from tests.storage.s3_server import s3_server

ANSWERS = {f"key-{number}": {"text": f"answer {number} é"} for number in range(20)}
TENSORS = {"weights": torch.arange(40_000, dtype=torch.float32), "step": torch.tensor(7.0)}
PART = 64 * 1024


class Work(Protocol):
    """Something that writes to a store, and reads it again."""

    def run(self, uri: str) -> None:
        """Do the work, from where an earlier run was stopped. Raises StageError."""

    def check(self, uri: str) -> None:
        """Assert that what lies at ``uri`` is whole and right."""

    def nothing_half(self, uri: str) -> None:
        """Assert that what lies at ``uri`` is not taken for more than it is."""


class PaidAnswers:
    def run(self, uri: str) -> None:
        ledger = open_ledger(uri)

        async def work() -> None:
            await asyncio.gather(*(ledger.put(key, answer) for key, answer in ANSWERS.items()))

        asyncio.run(work())
        self._assert_right(open_ledger(uri))

    def check(self, uri: str) -> None:
        ledger = open_ledger(uri)
        assert {key: ledger.get(key) for key in ANSWERS} == ANSWERS

    def nothing_half(self, uri: str) -> None:
        self._assert_right(open_ledger(uri))

    @staticmethod
    def _assert_right(ledger: Any) -> None:
        found = {key: ledger.get(key) for key in ANSWERS}
        assert {key: answer for key, answer in found.items() if answer is not None}.items() <= ANSWERS.items()


class TrainingState:
    def run(self, uri: str) -> None:
        states = self._states(uri)
        states.newest()
        try:
            states.save(7, TENSORS, {"rate": 0.1})
        except Exception as error:
            raise to_stage_error(error, uri) from None
        if self._states(uri).newest() is None:
            raise StageError("the state cannot be read")

    def check(self, uri: str) -> None:
        saved = self._states(uri).newest()
        assert saved is not None and saved.step == 7 and saved.about == {"rate": 0.1}
        assert all(torch.equal(saved.tensors[name], value) for name, value in TENSORS.items())

    def nothing_half(self, uri: str) -> None:
        if self._states(uri).newest() is not None:
            self.check(uri)

    @staticmethod
    def _states(uri: str) -> Checkpoints:
        return Checkpoints(open_store(uri, setting="checkpoint_uri"), {"seed": 1}, keep=2, where=uri)


class Release:
    """The model's own files lie in the same store, as a run's artifacts do."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.manifest = read_model_manifest(model)

    def prepare(self, uri: str) -> None:
        store = open_store(f"{uri}/run", setting="x")
        for path in self.model.rglob("*"):
            if path.is_file():
                store.write(path.relative_to(self.model).as_posix(), path.read_bytes())

    def run(self, uri: str) -> None:
        publish_export(f"{uri}/run", self.manifest, f"{uri}/releases")

    def check(self, uri: str) -> None:
        store = self._store(uri)
        for name in [*self.manifest.files, MODEL_MANIFEST]:
            assert store.read(name) == (self.model / name).read_bytes()

    def nothing_half(self, uri: str) -> None:
        if MODEL_MANIFEST in self._store(uri).list_names():
            self.check(uri)

    def _store(self, uri: str) -> Any:
        return open_store(f"{uri}/releases/sha256-{self.manifest.digest}", setting="x")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of several parts."""
    directory = write_bundle(tmp_path_factory.mktemp("faults") / "model", 1)
    (directory / "onnx").mkdir()
    (directory / "onnx/model.onnx").write_bytes(b"graph" * 1000)
    (directory / "onnx/model.onnx.data").write_bytes(bytes(range(256)) * 24_000)
    files = hash_files(directory, ["onnx/model.onnx", "onnx/model.onnx.data", "encoder.json"])
    manifest = json.loads((directory / MODEL_MANIFEST).read_text())
    described = {name: file.model_dump() for name, file in files.items()}
    ModelManifest(**manifest | {"files": described, "digest": compute_digest(files)}).write(directory)
    return directory


@pytest.fixture(scope="module", params=["own", "ceph"])
def store_url(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    """Where a store answers, and the environment of its clients."""
    if request.param == "ceph" and (reason := why_no_ceph()):
        pytest.skip(f"NOT TESTED AGAINST A REAL S3: {reason}")
    with ceph_s3() if request.param == "ceph" else s3_server() as server:
        yield server.url, server.environment


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that wait little, and send in small parts."""
    # S3 takes no parts below 5 MiB but the last: the model's largest file has two.
    monkeypatch.setattr(bucket_module, "_PART_BYTES", 5 * 1024**2)
    monkeypatch.setattr(bucket_module, "_RETRY_POLICY", RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.01))
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20)}
    monkeypatch.setattr(bucket_module, "_CLIENT_RETRIES", {"max_retries": 4, "backoff": backoff})
    limits = {"timeout": timedelta(seconds=2), "connect_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(bucket_module, "_TIMEOUTS", limits)


@pytest.fixture
def proxy(store_url: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch, patience: None) -> Iterator[Proxy]:
    """Between a client of little patience and the store."""
    url, environment = store_url
    with proxy_before(url) as running:
        for name, value in (environment | {"AWS_ENDPOINT_URL": running.url}).items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(params=["answers", "state", pytest.param("release", marks=pytest.mark.slow)])
def work(request: pytest.FixtureRequest, model: Path) -> Work:
    return {"answers": PaidAnswers, "state": TrainingState}.get(request.param, lambda: Release(model))()


@pytest.fixture
def uri(request: pytest.FixtureRequest, proxy: Proxy, work: Work) -> str:
    place = f"s3://bucket/{abs(hash(request.node.nodeid)):x}"
    if isinstance(work, Release):
        work.prepare(place)
    proxy.requests.clear()
    return place


def name_of(make: Callable[[], Fault]) -> str:
    return make().name


@pytest.mark.parametrize("make", PASSING, ids=name_of)
def test_what_passes_leaves_no_trace(make: Callable[[], Fault], proxy: Proxy, work: Work, uri: str) -> None:
    proxy.fault = fault = make()
    work.run(uri)
    proxy.fault = None
    work.check(uri)
    if not fault.struck:
        pytest.skip(f"this work makes no request that '{fault.name}' could strike")


@pytest.mark.parametrize(("make", "error", "words"), LASTING, ids=[name_of(make) for make, *_ in LASTING])
def test_what_stays_is_said_and_nothing_half_is_left(
    make: Callable[[], Fault], error: type[StageError], words: str, proxy: Proxy, work: Work, uri: str
) -> None:
    proxy.fault = fault = make()
    if _must_fail(fault, work):
        with pytest.raises(error, match=words) as raised:
            work.run(uri)
        assert "\n" not in str(raised.value)
    else:
        with contextlib.suppress(StageError):
            work.run(uri)
    proxy.fault = None
    work.nothing_half(uri)
    # Run again, it goes on: nobody cleans up by hand.
    work.run(uri)
    work.check(uri)


def _must_fail(fault: Fault, work: Work) -> bool:
    """A release never lists; only a large download asks for ranges."""
    return not (fault.name == "no rights to list" and isinstance(work, Release)) and fault.name != "ranges ignored"


def test_work_stopped_after_any_request_goes_on_where_it_stood(proxy: Proxy, work: Work, uri: str) -> None:
    """The store goes away for good after the first, second, ... request; each time another process takes over."""
    stopped = 0
    for number in range(1, 80):
        allowed = iter(range(number))
        proxy.fault = Fault("gone", lambda e: e.drop(), lambda *_, left=allowed: next(left, None) is None, None)
        place = f"{uri}-{number}"
        if isinstance(work, Release):
            proxy.fault, fault = None, proxy.fault
            work.prepare(place)
            proxy.fault = fault
        try:
            work.run(place)
            break
        except StageError as error:
            assert error.exit_code in (3, 75), error
            stopped += 1
        proxy.fault = None
        work.nothing_half(place)
        work.run(place)
        work.check(place)
    assert stopped >= 4


def test_a_release_cut_short_is_not_copied_again(proxy: Proxy, model: Path) -> None:
    work = Release(model)
    uri = "s3://bucket/resumed"
    work.prepare(uri)
    proxy.fault = Fault("no manifest", lambda e: e.refuse(403, "AccessDenied"),
                        lambda method, path: method == "PUT" and path.endswith(f"/{MODEL_MANIFEST}"), None)  # fmt: skip
    with pytest.raises(StageError):
        work.run(uri)
    proxy.fault = None
    proxy.requests.clear()
    work.run(uri)
    written = [path for method, path in proxy.requests if method in ("PUT", "POST")]
    assert not any(name in path for path in written for name in work.manifest.files)
    work.check(uri)


def test_an_object_changed_in_the_store_is_never_read_as_what_was_written(proxy: Proxy) -> None:
    store = open_store("s3://bucket/rot", setting="x")
    for name, body in (("small", b"x" * 1000), ("large", bytes(range(256)) * 30_000)):
        store.write(name, body)
        kept = store._store.get(name).attributes
        rotten = bytearray(body)
        rotten[len(body) // 3] ^= 1
        store._store.put(name, bytes(rotten), attributes=kept, use_multipart=False)
        for read in (store.read, lambda name: b"".join(store.read_chunks(name))):
            with pytest.raises(OSError, match="does not have the sha256"):
                read(name)
        assert isinstance(to_stage_error(_caught(store.read, name), "x"), StageError)


def test_of_two_writers_one_creates(proxy: Proxy) -> None:
    one, other = (open_store("s3://bucket/lock", setting="x") for _ in range(2))
    one.create("holder", b"one")
    one.create("holder", b"one")
    with pytest.raises(FileExistsError):
        other.create("holder", b"other")
    assert other.read("holder") == b"one"


@pytest.mark.parametrize("name", ["a b/ü-日本.json", "x/%2f/y", "plus+and&amp=.txt", "q?x#y", "n" * 200, "dots/...x"])
def test_names_come_back_as_they_were(proxy: Proxy, name: str) -> None:
    store = open_store("s3://bucket/names", setting="x")
    store.write(name, name.encode())
    assert name in store.list_names()
    assert store.read(name) == name.encode()
    store.delete([name])
    assert name not in store.list_names()


@pytest.mark.parametrize("name", ["../other/file", "a/../../b", "a//b"])
def test_names_that_leave_their_place_are_refused(proxy: Proxy, name: str) -> None:
    store = open_store("s3://bucket/names", setting="x")
    with pytest.raises(Exception, match=r"(?i)path"):
        store.write(name, b"x")
    assert not [path for method, path in proxy.requests if method == "PUT"]


def _caught(action: Callable[[str], Any], argument: str) -> BaseException:
    with pytest.raises(OSError) as caught:
        action(argument)
    return caught.value
