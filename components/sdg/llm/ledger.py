"""Answers that were paid for, on durable storage before they count; asked again, they cost nothing.

A ledger is a directory or a prefix of a bucket with segments of JSON lines ``{"key": ..., "answer": ...}``. Segments
are only added: each process writes its own, so that a torn line of a killed one harms nothing else. The key is a hash
of everything that an answer depends on; prompts, documents and credentials are not stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from components.core.errors import StageError, Transient
from components.core.store import Store, open_store
from components.core.store.directory import sync_directory
from components.core.store.errors import summarize_error, to_stage_error

_log = logging.getLogger(__name__)
_HEADER = b'{"format": "nemotron-embed-kubeflow.ledger/1"}\n'
_SEGMENTS_TO_MERGE = 256
_READERS = 16


class SegmentStorage(Protocol):
    """Where segments lie. Both methods raise OSError or obstore's errors."""

    def read(self) -> Iterator[bytes]:
        """Every segment, oldest first."""

    def append(self, lines: bytes) -> None:
        """Return when ``lines`` are durable."""


class Ledger:
    """Answers by key. Without ``storage`` they last as long as the process."""

    def __init__(self, storage: SegmentStorage | None = None, *, where: str = "") -> None:
        self._storage, self._where = storage, where
        self._answers: dict[str, Any] = {}
        self._waiting: list[tuple[str, Any, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        if storage is not None:
            self._open(storage)

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def durable(self) -> bool:
        """Whether answers outlive the process."""
        return self._storage is not None

    def get(self, key: str) -> Any | None:
        """The answer, or None when it was never paid for."""
        return self._answers.get(key)

    async def put(self, key: str, answer: Any) -> None:
        """Return when ``answer`` is durable; answers that come meanwhile share the next write.

        Raises Transient when it cannot be stored.
        """
        if self._storage is None:
            self._answers[key] = answer
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answer, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(self._storage))
        await done

    async def _write(self, storage: SegmentStorage) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            lines = "".join(json.dumps({"key": key, "answer": answer}) + "\n" for key, answer, _ in batch).encode()
            failure: StageError | None = None
            try:
                await asyncio.to_thread(storage.append, lines)
            except Exception as error:
                failure = Transient(
                    f"{self._where}: answers cannot be kept ({summarize_error(error)}): run again when they can"
                )
            for key, answer, done in batch:
                if failure is None:
                    self._answers[key] = answer
                if not done.done():
                    done.set_exception(failure) if failure else done.set_result(None)

    def _open(self, storage: SegmentStorage) -> None:
        """Read all segments, and write a first line: a ledger that cannot be written must not cost an answer."""
        torn = 0
        try:
            for segment in storage.read():
                for line in segment.split(b"\n"):
                    if not line:
                        continue
                    try:
                        entry = json.loads(line)
                        if "format" not in entry:
                            self._answers.setdefault(entry["key"], entry["answer"])
                    except (ValueError, KeyError, TypeError):
                        torn += 1
            storage.append(_HEADER)
        except Exception as error:
            raise to_stage_error(error, self._where) from None
        if torn:
            _log.warning("%s: %d lines that a killed run left unfinished are ignored", self._where, torn)
        _log.info("%s holds %d answers", self._where, len(self._answers))


def open_ledger(uri: str | None) -> Ledger:
    """The ledger at ``uri``: a directory, ``s3://bucket/prefix`` or ``gs://bucket/prefix``; None keeps nothing.

    Raises InputError for another scheme, and what ``to_stage_error`` says of one that cannot be read and written.
    """
    if not uri:
        return Ledger()
    where = f"ledger_uri = {uri}"
    if "://" not in uri:
        return Ledger(DirectorySegments(Path(uri)), where=where)
    return Ledger(BucketSegments(open_store(uri, setting="ledger_uri")), where=where)


def canonical(value: Any) -> str:
    """``value`` as JSON, the same text for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def key_of(**parts: str) -> str:
    """A hash of everything that an answer depends on; each part is ``canonical`` JSON."""
    listed = ",".join(f'"{name}":{part}' for name, part in sorted(parts.items()))
    return hashlib.sha256(f"{{{listed}}}".encode()).hexdigest()


class DirectorySegments:
    """A directory on a disk that outlives the process: a local one, or a volume."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / f"{_segment_name()}.jsonl"
        self._file: int | None = None

    def read(self) -> Iterator[bytes]:
        for path in sorted(self._directory.glob("*.jsonl")):
            yield path.read_bytes()

    def append(self, lines: bytes) -> None:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            sync_directory(self._directory)
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)


class BucketSegments:
    """A bucket; each write is an object of its own, created and never changed by another process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._name, self._written = _segment_name(), 0

    def read(self) -> Iterator[bytes]:
        names = [name for name in self._store.list_names() if _is_segment(name)]
        with ThreadPoolExecutor(_READERS) as pool:
            segments = list(pool.map(self._store.read, names))
        if len(names) >= _SEGMENTS_TO_MERGE:
            # The merged segment takes the first one's place before the others go: a kill in between leaves copies.
            self._store.write(names[0], b"".join(segment.rstrip(b"\n") + b"\n" for segment in segments))
            self._store.delete(names[1:])
        yield from segments

    def append(self, lines: bytes) -> None:
        self._written += 1
        self._store.create(f"{self._name}-{self._written:08}.jsonl", lines)


def _is_segment(name: str) -> bool:
    return "/" not in name and name.endswith(".jsonl")


def _segment_name() -> str:
    """Sorts by time; no two processes have the same."""
    return f"{time.time_ns():020}-{secrets.token_hex(4)}"
