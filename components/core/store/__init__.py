"""Files on durable storage: a directory that outlives the pod, or a prefix of a bucket.

Buckets are ``s3://`` (AWS, and what speaks like it: Ceph, SeaweedFS, MinIO), ``minio://`` (KFP's name for the same) and
``gs://``. Credentials come from the environment, as the clouds' own tools take them: keys, IRSA, EKS pod identity,
workload identity. Every object carries the sha256 of its content and is checked by it when it is read. An object is
there whole or not at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError
from components.core.store.directory import DirectoryStore, read_file_chunks
from components.core.store.errors import summarize_error

__all__ = ["Store", "open_store", "read_file_chunks"]

_BUCKET_SCHEMES = ("s3", "minio", "gs")


class Store(Protocol):
    """Whole files by name ("a/b/c"). All methods raise OSError or obstore's errors: see ``to_stage_error``."""

    def list_names(self, prefix: str = "") -> list[str]:
        """Names of all files that start with ``prefix``, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError, or CorruptObject when it is not what was written."""
        ...

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """The content of a large file, part by part; each part is fetched again by itself when it fails."""
        ...

    def write(self, name: str, body: bytes) -> None:
        """Return when ``body`` is durable. A kill leaves the file as it was before."""
        ...

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        """As ``write``, for a large file of that size and hash; nothing is written when ``chunks`` raises."""
        ...

    def create(self, name: str, body: bytes) -> None:
        """As ``write``; raises FileExistsError when there is such a file with another content."""
        ...

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        """Whether the file with that content is there; it is read when its writer left no hash."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove files one after the other; those that are gone already are no error."""
        ...


def open_store(uri: str, *, setting: str) -> Store:
    """Open the storage at ``uri``: a directory or ``file://``, or a bucket and prefix at ``s3://``, ``minio://``, ``gs://``.

    Raises InputError, naming ``setting``, for another scheme or a malformed address.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{setting} = {uri} is no address ({error})") from None
    if not parts.scheme or parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path) if parts.scheme else uri))
    if parts.scheme not in _BUCKET_SCHEMES:
        raise InputError(f"{setting} = {uri}: expected a directory, s3://bucket/prefix or gs://bucket/prefix")
    # By name: what keeps its files in a directory runs without obstore.
    bucket = importlib.import_module("components.core.store.bucket")
    try:
        store: Store = bucket.BucketStore(uri)
        return store
    except Exception as error:
        raise InputError(f"{setting} = {uri} is no address of a bucket ({summarize_error(error)})") from None
