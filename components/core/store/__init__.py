"""Files on durable storage: a directory that outlives the pod, or a prefix of a bucket.

Buckets are ``s3://`` (AWS, and what speaks like it: Ceph, SeaweedFS, MinIO), ``minio://`` (KFP's name for the same) and
``gs://``. Credentials come from the environment, as the clouds' own tools take them: keys, IRSA, EKS pod identity,
workload identity. Every object carries the sha256 of its content and is checked by it when it is read. An object is
there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError
from components.core.store.bucket import SCHEMES, BucketStore
from components.core.store.directory import DirectoryStore, read_file_chunks
from components.core.store.errors import summarize_error

__all__ = ["Store", "open_store", "read_file_chunks"]


class Store(Protocol):
    """Whole files by name ("a/b/c"). Methods raise OSError or obstore's errors, which ``to_stage_error`` explains."""

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all files that start with ``prefix``."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises FileNotFoundError, and CorruptObject when the content is not what was written.
        """
        ...

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a large file in chunks. A chunk that fails is fetched again by itself."""
        ...

    def write(self, name: str, body: bytes) -> None:
        """Write a file and return when it is durable. A process that is killed leaves the file as it was before."""
        ...

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        """Write a large file of ``size`` bytes and that hash; write nothing when ``chunks`` raises.

        ``chunks`` is called again for each attempt.
        """
        ...

    def create(self, name: str, body: bytes) -> None:
        """Write a file that does not exist. Raises FileExistsError when it exists with other content."""
        ...

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        """Return whether the file exists with that content. It is read when its writer left no hash."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove files one after the other. Files that do not exist are no error."""
        ...


def open_store(uri: str, *, setting: str) -> Store:
    """Open the storage at ``uri``: a directory, ``file://``, or ``s3://``, ``minio://``, ``gs://`` with a bucket.

    Raises InputError, which names ``setting``, for another scheme or a malformed address.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{setting} = {uri} is no address ({error})") from None
    if not parts.scheme or parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path) if parts.scheme else uri))
    if parts.scheme not in SCHEMES:
        raise InputError(f"{setting} = {uri}: expected a directory, s3://bucket/prefix or gs://bucket/prefix")
    try:
        return BucketStore(uri)
    except Exception as error:
        raise InputError(f"{setting} = {uri} is no address of a bucket ({summarize_error(error)})") from None
