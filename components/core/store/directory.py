"""A directory as a store: files appear whole or not at all, and are durable when a write returns."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from components.core.store.errors import CorruptObject

_PARTIAL_SUFFIX = ".partial"
_PART_BYTES = 32 * 1024**2


class DirectoryStore:
    """A directory as a store; names are paths below it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all files that start with ``prefix``."""
        # Other than Path.rglob, os.walk does not mind what another process removes meanwhile.
        paths = (Path(root, file) for root, _, files in os.walk(self._directory) for file in files)
        names = (path.relative_to(self._directory).as_posix() for path in paths)
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(_PARTIAL_SUFFIX))

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""
        return (self._directory / name).read_bytes()

    def read_chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in chunks. Raises FileNotFoundError."""
        return read_file_chunks(self._directory / name)

    def write(self, name: str, body: bytes) -> None:
        """Write a file and return when it is durable."""
        self._write_beside(name, [body], lambda partial, path: partial.replace(path))

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        """Write a file of ``size`` bytes and that hash. Raises CorruptObject, and writes nothing, for other chunks."""
        checked = _check_chunks(name, chunks(), size, sha256)
        self._write_beside(name, checked, lambda partial, path: partial.replace(path))

    def create(self, name: str, body: bytes) -> None:
        """Write a file that does not exist. Raises FileExistsError when it exists with other content."""
        try:
            self._write_beside(name, [body], lambda partial, path: path.hardlink_to(partial))
        except FileExistsError:
            if self.read(name) != body:
                raise

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        """Return whether the file exists with that content."""
        path = self._directory / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def delete(self, names: Iterable[str]) -> None:
        """Remove files and the directories that they leave empty. Files that do not exist are no error."""
        folders = set()
        for name in names:
            path = self._directory / name
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            self._remove_if_empty(folder)

    def _write_beside(self, name: str, chunks: Iterable[bytes], publish: Callable[[Path, Path], object]) -> None:
        """Write the chunks beside the file ``name`` and give them its name with ``publish(partial, path)``."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL_SUFFIX}")
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            publish(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):
            sync_directory(folder)

    def _remove_if_empty(self, folder: Path) -> None:
        """Remove ``folder`` unless it holds files; partial files of writes that were killed do not count."""
        if folder == self._directory or not folder.is_dir():
            return
        inside = list(folder.iterdir())
        if all(path.name.endswith(_PARTIAL_SUFFIX) for path in inside):
            for path in inside:
                path.unlink(missing_ok=True)
            folder.rmdir()


def read_file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in chunks of 32 MiB."""
    with path.open("rb") as file:
        while chunk := file.read(_PART_BYTES):
            yield chunk


def _check_chunks(name: str, chunks: Iterable[bytes], size: int, sha256: str) -> Iterator[bytes]:
    written, count = hashlib.sha256(), 0
    for chunk in chunks:
        written.update(chunk)
        count += len(chunk)
        yield chunk
    if (count, written.hexdigest()) != (size, sha256):
        raise CorruptObject(f"{name} does not have the sha256 and size that it was to be written with")


def sync_directory(directory: Path) -> None:
    """Make new and renamed files of ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
