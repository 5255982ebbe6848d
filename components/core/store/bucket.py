"""A prefix of a bucket as a store: whole objects, checked by their sha256 when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import AlreadyExistsError
from obstore.store import from_url

from components.core.retry import RetryPolicy, TryAgain
from components.core.store.errors import CorruptObject, is_transient, summarize_error

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = {"s3": "s3", "minio": "s3", "gs": "gs"}
# Bodies have hundreds of megabytes; parts of this size fill the network with few requests, and each can be repeated.
_PART_BYTES = 32 * 1024**2
_READERS = 8
_SHA256 = "sha256"
_RETRY_POLICY = RetryPolicy(attempts=3, first_wait=0.5, multiplier=4.0, jitter=0.0)
_CLIENT_RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
# A part needs half a megabyte a second.
_TIMEOUTS: ClientConfig = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "STORAGE_EMULATOR_HOST")
Result = TypeVar("Result")


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
        options = _TIMEOUTS.copy()
        # Stores inside of a cluster are often reached without TLS.
        if any(not os.environ.get(name, "https://").startswith("https://") for name in _ENDPOINTS):
            options["allow_http"] = True
        self._store: ObjectStore = from_url(
            f"{SCHEMES[parts.scheme]}://{parts.netloc}{parts.path}".rstrip("/"),
            client_options=options,
            retry_config=_CLIENT_RETRIES,
            **config,
        )

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all objects that start with ``prefix``."""
        # A prefix of an object store ends at a slash, so the rest of the name is compared here.
        folder = prefix.rpartition("/")[0] or None
        names = _retry(lambda: [entry["path"] for batch in self._store.list(folder) for entry in batch])
        return sorted(name for name in names if name.startswith(prefix))

    def list_files(self) -> dict[str, tuple[int, float]]:
        """Return the size in bytes and the time of the last change, in seconds since 1970, of all objects by name."""
        entries = (entry for batch in self._store.list() for entry in batch)
        return {entry["path"]: (entry["size"], entry["last_modified"].timestamp()) for entry in entries}

    def read(self, name: str) -> bytes:
        """Return the content of an object.

        Raises FileNotFoundError, and CorruptObject when the content does not have the sha256 it was written with.
        """
        return _retry(lambda: self._read(name))

    def _read(self, name: str) -> bytes:
        result = self._store.get(name)
        size = result.meta["size"]
        if size <= _PART_BYTES:
            body = bytes(result.bytes())
        else:
            # One request for all of it would have to end within the client's time limit.
            with ThreadPoolExecutor(_READERS) as pool:
                body = b"".join(pool.map(lambda part: self._read_part(name, *part), _split_into_parts(size)))
        _check_sha256(name, hashlib.sha256(body).hexdigest(), result.attributes)
        return body

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a large object in parts; each is fetched again by itself when it fails.

        Raises CorruptObject after the last part when the content does not have the sha256 it was written with.
        """
        result = self._store.get(name, options={"head": True})
        if result.meta["size"] <= _PART_BYTES:
            yield self.read(name)
            return
        digest = hashlib.sha256()
        for start, end in _split_into_parts(result.meta["size"]):
            part = self._retry_part(name, start, end)
            digest.update(part)
            yield part
        _check_sha256(name, digest.hexdigest(), result.attributes)

    def _retry_part(self, name: str, start: int, end: int) -> bytes:
        return _retry(lambda: self._read_part(name, start, end))

    def _read_part(self, name: str, start: int, end: int) -> bytes:
        return bytes(self._store.get_range(name, start=start, end=end))

    def write(self, name: str, body: bytes) -> None:
        """Write an object and return when it is durable."""
        attributes: Attributes = {_SHA256: hashlib.sha256(body).hexdigest()}
        _retry(lambda: self._store.put(name, body, attributes=attributes, chunk_size=_PART_BYTES))

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        """Write a large object of ``size`` bytes and that hash; write nothing when ``chunks`` raises.

        ``chunks`` is called again for each attempt.
        """
        attributes: Attributes = {_SHA256: sha256}
        large = size > _PART_BYTES
        _retry(
            lambda: self._store.put(
                name, _prefetch(chunks()), attributes=attributes, chunk_size=_PART_BYTES, use_multipart=large
            )
        )

    def create(self, name: str, body: bytes) -> None:
        """Write an object that does not exist. Raises FileExistsError when it exists with other content."""
        attributes: Attributes = {_SHA256: hashlib.sha256(body).hexdigest()}
        try:
            _retry(lambda: self._store.put(name, body, mode="create", attributes=attributes, use_multipart=False))
        except AlreadyExistsError:
            # Also the answer to a request repeated because the answer to the first was lost.
            if self.read(name) != body:
                raise FileExistsError(f"{name} is there already, with another content") from None

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        """Return whether the object exists with that content. It is read when its writer left no hash."""
        try:
            result = self._store.get(name, options={"head": True})
        except FileNotFoundError:
            return False
        if result.meta["size"] != size:
            return False
        written = result.attributes.get(_SHA256)
        return (written or _compute_sha256(self.read_chunks(name))) == sha256

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects one after the other. Objects that do not exist are no error."""
        for name in names:
            try:
                self._store.delete(name)
            except FileNotFoundError:
                continue


def _retry(action: Callable[[], Result]) -> Result:
    """Return the result of ``action``, repeated while its error is transient; after the last attempt, raise it."""

    def attempt() -> Result:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            raise TryAgain(summarize_error(error)) from error

    try:
        return _RETRY_POLICY.retrying()(attempt)
    except TryAgain as last:
        assert last.__cause__ is not None
        raise last.__cause__ from None


def _prefetch(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks; while one is sent, the next is made in a thread, from which obstore can be called."""
    source = iter(chunks)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, source, None)
        while (chunk := following.result()) is not None:
            following = pool.submit(next, source, None)
            yield chunk


def _compute_sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _split_into_parts(size: int) -> list[tuple[int, int]]:
    """Return start and end of each part of an object of ``size`` bytes."""
    return list(pairwise([*range(0, size, _PART_BYTES), size]))


def _check_sha256(name: str, sha256: str, attributes: Attributes) -> None:
    written = attributes.get(_SHA256)
    if written and sha256 != written:
        raise CorruptObject(f"{name} does not have the sha256 that it was written with")
