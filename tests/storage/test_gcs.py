"""Cloud Storage: the same work over gs://, before this repository's server and before Google's API in an emulator.

obstore speaks Cloud Storage's XML API, the emulator (the package gcp-storage-emulator) the JSON API only: before it,
this repository's server answers the XML, and keeps every object in the emulator by Google's own client.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from components.core.store import open_store
from tests.storage.faults import PASSING
from tests.storage.proxy import proxy_before
from tests.storage.s3_server import S3Server, s3_server
from tests.storage.test_faults import PaidAnswers, Release, TrainingState, Work, model, patience

__all__ = ["model", "patience"]
EMULATOR = shutil.which("gcp-storage-emulator")
# Uploads over gs:// carry no hash that a server could check: what changes them on the way is found when they are read.
NOT_SEEN_BY_THE_SERVER = ("upload changed on the way", "part of an upload changed on the way")


class Blobs(MutableMapping[str, bytes]):
    """Objects of a server, kept in the emulator's bucket."""

    def __init__(self, url: str) -> None:
        options = {"api_endpoint": url}
        client = storage.Client(project="test", credentials=AnonymousCredentials(), client_options=options)
        self._bucket = client.create_bucket("bucket")

    def __getitem__(self, key: str) -> bytes:
        blob = self._bucket.get_blob(key.removeprefix("bucket/"))
        if blob is None:
            raise KeyError(key)
        return blob.download_as_bytes()

    def __setitem__(self, key: str, body: bytes) -> None:
        self._bucket.blob(key.removeprefix("bucket/")).upload_from_string(body)

    def __delitem__(self, key: str) -> None:
        blob = self._bucket.get_blob(key.removeprefix("bucket/"))
        if blob is None:
            raise KeyError(key)
        blob.delete()

    def __iter__(self) -> Iterator[str]:
        return iter([f"bucket/{blob.name}" for blob in self._bucket.list_blobs()])

    def __len__(self) -> int:
        return len(list(iter(self)))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Blobs]:
    if not EMULATOR:
        pytest.skip("NOT TESTED AGAINST GOOGLE'S API: gcp-storage-emulator is not installed (pip)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("emulator") / "log").open("wb")
    command = [EMULATOR, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Blobs(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(params=["own", "emulator"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, patience: None) -> Iterator[S3Server]:
    with s3_server() as running:
        if request.param == "emulator":
            running.objects = request.getfixturevalue("emulator")
            running.objects.clear()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        for name in running.environment:
            monkeypatch.delenv(name, raising=False)
        yield running


@pytest.fixture(params=["answers", "state", "release"])
def work(request: pytest.FixtureRequest, model: Path) -> Work:
    return {"answers": PaidAnswers, "state": TrainingState}.get(request.param, lambda: Release(model))()


def test_all_that_is_kept_in_buckets_is_kept_in_cloud_storage(server: S3Server, work: Work) -> None:
    if isinstance(work, Release):
        work.prepare("gs://bucket/team")
    work.run("gs://bucket/team")
    work.check("gs://bucket/team")
    assert server.objects


def test_objects_come_back_with_what_they_are_checked_by(server: S3Server) -> None:
    store = open_store("gs://bucket/prefix", setting="x")
    body = bytes(range(256)) * 30_000
    store.write("large", body)
    store.create("new", b"one")
    with pytest.raises(FileExistsError):
        store.create("new", b"two")
    assert (store.read("large"), b"".join(store.read_chunks("large")), store.read("new")) == (body, body, b"one")
    assert store.list_names() == ["large", "new"]
    rotten = bytearray(body)
    rotten[1000] ^= 1
    server.objects["bucket/prefix/large"] = bytes(rotten)
    with pytest.raises(OSError, match="does not have the sha256"):
        store.read("large")
    store.delete(["large", "new", "new"])
    assert store.list_names() == []


@pytest.mark.parametrize("number", range(len(PASSING)), ids=[make().name for make in PASSING])
def test_what_passes_leaves_no_trace(number: int, model: Path, monkeypatch: pytest.MonkeyPatch, patience: None) -> None:
    fault = PASSING[number]()
    if fault.name in NOT_SEEN_BY_THE_SERVER:
        pytest.skip("no hash goes with an upload over gs://: TLS guards it, and it is checked when it is read")
    with s3_server() as server, proxy_before(server.url) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        work = Release(model)
        work.prepare("gs://bucket/team")
        proxy.fault = fault
        work.run("gs://bucket/team")
        answers = PaidAnswers()
        answers.run("gs://bucket/answers")
        proxy.fault = None
        work.check("gs://bucket/team")
        answers.check("gs://bucket/answers")
        assert fault.struck
