"""Files on durable storage: a directory that outlives the pod, or a prefix of a bucket."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from components.core.errors import InputError

_UNFINISHED = ".partial"
# Bodies have hundreds of megabytes; parts of this size fill the network with few requests.
_PART_BYTES = 32 * 1024**2
_READERS = 8


class Storage(Protocol):
    """Whole files by name ("a/b/c"). All methods raise OSError or obstore's errors."""

    def names(self, prefix: str = "") -> list[str]:
        """Names of all files that start with ``prefix``."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file."""
        ...

    def write(self, name: str, body: bytes) -> None:
        """Return when ``body`` is durable. A kill leaves the file as it was before."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove files one after the other; those that are gone already are no error."""
        ...


def open_storage(uri: str) -> Storage:
    """The storage at ``uri``: a directory, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    Buckets find their credentials in the environment, as the clouds' own tools do. Raises InputError for another
    scheme or a malformed address.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return Folder(Path(uri))
    if scheme not in ("s3", "gs"):
        raise InputError(f"checkpoint_uri = {uri}: expected a directory, s3://bucket/prefix or gs://bucket/prefix")
    try:
        return Bucket(uri)
    except Exception as error:
        raise InputError(f"checkpoint_uri = {uri} is no address of a bucket ({short(error)})") from None


class Folder:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self, prefix: str = "") -> list[str]:
        # Other than Path.rglob, os.walk does not mind what another process removes meanwhile.
        found = (Path(root, file) for root, _, files in os.walk(self._directory) for file in files)
        names = (path.relative_to(self._directory).as_posix() for path in found)
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(_UNFINISHED))

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def write(self, name: str, body: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            with unfinished.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        for folder in (path.parent, path.parent.parent):
            _sync(folder)

    def delete(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self._directory / name
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            self._remove_if_left(folder)

    def _remove_if_left(self, folder: Path) -> None:
        """Remove ``folder`` unless it holds files; what a killed write left unfinished is none."""
        if folder == self._directory or not folder.is_dir():
            return
        inside = list(folder.iterdir())
        if all(path.name.endswith(_UNFINISHED) for path in inside):
            for path in inside:
                path.unlink(missing_ok=True)
            folder.rmdir()


class Bucket:
    """A prefix of a bucket. Objects appear whole or not at all."""

    def __init__(self, uri: str) -> None:
        from obstore.store import from_url  # noqa: PLC0415 -- only users of buckets need the package

        self._store = from_url(uri)

    def names(self, prefix: str = "") -> list[str]:
        # A prefix of an object store ends at a slash, so the rest of the name is compared here.
        folder = prefix.rpartition("/")[0] or None
        found = (entry["path"] for batch in self._store.list(folder) for entry in batch)
        return sorted(name for name in found if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        found = self._store.get(name)
        size = found.meta["size"]
        if size <= _PART_BYTES:
            return bytes(found.bytes())
        # One request for all of it would have to end within the client's time limit.
        spans = [(start, min(start + _PART_BYTES, size)) for start in range(0, size, _PART_BYTES)]
        with ThreadPoolExecutor(_READERS) as pool:
            return b"".join(pool.map(lambda span: self._store.get_range(name, start=span[0], end=span[1]), spans))

    def write(self, name: str, body: bytes) -> None:
        self._store.put(name, body, chunk_size=_PART_BYTES)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._store.delete(name)
            except FileNotFoundError:
                continue


def short(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
