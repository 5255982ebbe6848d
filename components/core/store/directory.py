"""A directory as a store: files appear whole or not at all, and are durable when a write returns."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from components.core.store.errors import CorruptObject

_UNFINISHED = ".partial"
_PART_BYTES = 32 * 1024**2


class DirectoryStore:
    """A directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def list_names(self, prefix: str = "") -> list[str]:
        # Other than Path.rglob, os.walk does not mind what another process removes meanwhile.
        found = (Path(root, file) for root, _, files in os.walk(self._directory) for file in files)
        names = (path.relative_to(self._directory).as_posix() for path in found)
        return sorted(name for name in names if name.startswith(prefix) and not name.endswith(_UNFINISHED))

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def read_chunks(self, name: str) -> Iterator[bytes]:
        return read_file_chunks(self._directory / name)

    def write(self, name: str, body: bytes) -> None:
        self._place(name, [body], lambda unfinished, path: unfinished.replace(path))

    def write_chunks(self, name: str, chunks: Callable[[], Iterable[bytes]], *, size: int, sha256: str) -> None:
        self._place(name, _checked(name, chunks(), size, sha256), lambda unfinished, path: unfinished.replace(path))

    def create(self, name: str, body: bytes) -> None:
        try:
            self._place(name, [body], lambda unfinished, path: path.hardlink_to(unfinished))
        except FileExistsError:
            if self.read(name) != body:
                raise

    def is_stored(self, name: str, *, size: int, sha256: str) -> bool:
        path = self._directory / name
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def delete(self, names: Iterable[str]) -> None:
        folders = set()
        for name in names:
            path = self._directory / name
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            self._remove_if_left(folder)

    def _place(self, name: str, chunks: Iterable[bytes], publish: Callable[[Path, Path], Any]) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            with unfinished.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            publish(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):
            _sync(folder)

    def _remove_if_left(self, folder: Path) -> None:
        """Remove ``folder`` unless it holds files; what a killed write left unfinished is none."""
        if folder == self._directory or not folder.is_dir():
            return
        inside = list(folder.iterdir())
        if all(path.name.endswith(_UNFINISHED) for path in inside):
            for path in inside:
                path.unlink(missing_ok=True)
            folder.rmdir()


def read_file_chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, part by part."""
    with path.open("rb") as file:
        while chunk := file.read(_PART_BYTES):
            yield chunk


def _checked(name: str, chunks: Iterable[bytes], size: int, sha256: str) -> Iterator[bytes]:
    written, count = hashlib.sha256(), 0
    for chunk in chunks:
        written.update(chunk)
        count += len(chunk)
        yield chunk
    if (count, written.hexdigest()) != (size, sha256):
        raise CorruptObject(f"{name} does not have the sha256 and size that it was to be written with")


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
