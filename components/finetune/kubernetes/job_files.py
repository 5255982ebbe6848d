"""Files that a TrainJob's pods get and give back, through a bucket that both sides reach.

<checkpoint_uri>/jobs/<name>/input/training_data/...     input/request.json last: settings, and sha256 of every file
<checkpoint_uri>/jobs/<name>/output/checkpoint/...       output/result.json last: figures, and sha256 of every file
<checkpoint_uri>/jobs/<name>/output/error.json           what stopped the training
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from components.core.errors import StageError, Transient, error_from_exit_code
from components.core.store import Store, read_file_chunks

REQUEST, RESULT, ERROR = "input/request.json", "output/result.json", "output/error.json"


def send_files(store: Store, kind: str, last: str, directories: Mapping[str, Path], about: Mapping[str, Any]) -> None:
    """Write the files of ``directories`` below ``kind``, then ``last`` with ``about`` and the hash of each file."""
    files = {}
    for name, directory in directories.items():
        paths = [directory] if directory.is_file() else sorted(p for p in directory.rglob("*") if p.is_file())
        for path in paths:
            inside = name if path == directory else f"{name}/{path.relative_to(directory).as_posix()}"
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            target, size = f"{kind}/{inside}", path.stat().st_size
            if not store.is_stored(target, size=size, sha256=digest):
                store.write_chunks(target, partial(read_file_chunks, path), size=size, sha256=digest)
            files[inside] = digest
    store.write(last, json.dumps({**about, "files": files}, sort_keys=True).encode())


def receive_files(store: Store, kind: str, last: str, directory: Path) -> dict[str, Any] | None:
    """Read into ``directory`` what ``send_files`` wrote, and return its ``about``; None when it is not complete.

    Raises Transient for a file that is not what was sent.
    """
    try:
        about: dict[str, Any] = json.loads(store.read(last))
    except FileNotFoundError:
        return None
    for name, expected in about.pop("files").items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in store.read_chunks(f"{kind}/{name}"):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != expected:
            raise Transient(f"{kind}/{name} does not have the sha256 that it was sent with: run again")
    return about


def send_error(store: Store, error: StageError) -> None:
    """Write what stopped the training."""
    store.write(ERROR, json.dumps({"exit_code": error.exit_code, "message": str(error)}).encode())


def receive_error(store: Store) -> StageError | None:
    """Return what stopped the training; None when no process wrote it."""
    try:
        error = json.loads(store.read(ERROR))
    except FileNotFoundError:
        return None
    return error_from_exit_code(error["exit_code"], error["message"])
