"""A prefix of a bucket as a store: whole objects, checked by their sha256 when they are read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import AlreadyExistsError
from obstore.store import from_url

from components.core.store.errors import CorruptObject, is_transient

SCHEMES = {"s3": "s3", "minio": "s3", "gs": "gs"}
# Bodies have hundreds of megabytes; parts of this size fill the network with few requests, and each can be repeated.
_PART_BYTES = 32 * 1024**2
_READERS = 8
_SHA256 = "sha256"
_WAITS = (0.5, 2.0)
_RETRIES: Any = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
# A part needs half a megabyte a second.
_TIMEOUTS: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "STORAGE_EMULATOR_HOST")
Answer = TypeVar("Answer")


class BucketStore:
    """A prefix of a bucket.

    obstore repeats requests that a server or the network failed, and signs every upload with the hash of its body, so
    that a server refuses what changed on the way. What it does not repeat is repeated here.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        config: dict[str, Any] = {}
        if parts.scheme == "gs" and (emulator := os.environ.get("STORAGE_EMULATOR_HOST")):
            # The variable of Google's own clients; an emulator asks for no credentials.
            url = emulator if "://" in emulator else f"http://{emulator}"
            config = {"base_url": url, "skip_signature": True, "bearer_token": "emulator"}
        # Stores inside of a cluster are often reached without TLS.
        plain = any(not os.environ.get(name, "https://").startswith("https://") for name in _ENDPOINTS)
        self._store: Any = from_url(
            f"{SCHEMES[parts.scheme]}://{parts.netloc}{parts.path}".rstrip("/"),
            client_options=_TIMEOUTS | ({"allow_http": True} if plain else {}),
            retry_config=_RETRIES,
            **config,
        )

    def list_names(self, prefix: str = "") -> list[str]:
        # A prefix of an object store ends at a slash, so the rest of the name is compared here.
        folder = prefix.rpartition("/")[0] or None
        found = _again(lambda: [entry["path"] for batch in self._store.list(folder) for entry in batch])
        return sorted(name for name in found if name.startswith(prefix))

    def list_files(self) -> dict[str, tuple[int, float]]:
        """Size in bytes and time of the last change, in seconds, of all files."""
        found = (entry for batch in self._store.list() for entry in batch)
        return {entry["path"]: (entry["size"], entry["last_modified"].timestamp()) for entry in found}

    def read(self, name: str) -> bytes:
        return _again(lambda: self._read(name))

    def _read(self, name: str) -> bytes:
        found = self._store.get(name)
        size = found.meta["size"]
        if size <= _PART_BYTES:
            body = bytes(found.bytes())
        else:
            # One request for all of it would have to end within the client's time limit.
            with ThreadPoolExecutor(_READERS) as pool:
                body = b"".join(pool.map(lambda span: self._part(name, *span), _spans(size)))
        _check(name, hashlib.sha256(body).hexdigest(), found.attributes)
        return body

    def read_chunks(self, name: str) -> Iterator[bytes]:
        found = self._store.get(name, options={"head": True})
        if found.meta["size"] <= _PART_BYTES:
            yield self.read(name)
            return
        read = hashlib.sha256()
        for start, end in _spans(found.meta["size"]):
            part = _again(lambda start=start, end=end: self._part(name, start, end))
            read.update(part)
            yield part
        _check(name, read.hexdigest(), found.attributes)

    def _part(self, name: str, start: int, end: int) -> bytes:
        return bytes(self._store.get_range(name, start=start, end=end))

    def write(self, name: str, body: bytes) -> None:
        attributes = {_SHA256: hashlib.sha256(body).hexdigest()}
        _again(lambda: self._store.put(name, body, attributes=attributes, chunk_size=_PART_BYTES))

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        options = {"attributes": {_SHA256: sha256}, "chunk_size": _PART_BYTES, "use_multipart": size > _PART_BYTES}
        _again(lambda: self._store.put(name, _ahead(chunks()), **options))

    def create(self, name: str, body: bytes) -> None:
        attributes = {_SHA256: hashlib.sha256(body).hexdigest()}
        try:
            _again(lambda: self._store.put(name, body, mode="create", attributes=attributes, use_multipart=False))
        except AlreadyExistsError:
            # Also the answer to a request repeated because the answer to the first was lost.
            if self.read(name) != body:
                raise FileExistsError(f"{name} is there already, with another content") from None

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        try:
            found = self._store.get(name, options={"head": True})
        except FileNotFoundError:
            return False
        if found.meta["size"] != size:
            return False
        written = found.attributes.get(_SHA256)
        return (written or _sha256(self.read_chunks(name))) == sha256

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._store.delete(name)
            except FileNotFoundError:
                continue


def _again(action: Callable[[], Answer]) -> Answer:
    for wait in _WAITS:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(wait)
    return action()


def _ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, each made while the one before is sent, in a thread of their own: obstore cannot be called from its
    own."""
    source = iter(chunks)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, source, None)
        while (chunk := following.result()) is not None:
            following = pool.submit(next, source, None)
            yield chunk


def _sha256(chunks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _spans(size: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, size, _PART_BYTES), size]))


def _check(name: str, found: str, attributes: Any) -> None:
    written = attributes.get(_SHA256)
    if written and found != written:
        raise CorruptObject(f"{name} does not have the sha256 that it was written with")
