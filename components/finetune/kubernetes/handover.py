"""What a TrainJob's pods are given and what they give back, through a bucket that both sides reach.

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


def send(store: Store, kind: str, last: str, directories: Mapping[str, Path], about: Mapping[str, Any]) -> None:
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


def receive(store: Store, kind: str, last: str, directory: Path) -> dict[str, Any] | None:
    """Read what ``send`` wrote into ``directory``; its ``about``, or None when it was not written to its end.

    Raises Transient for a file that is not what was sent.
    """
    try:
        about = json.loads(store.read(last))
    except FileNotFoundError:
        return None
    for name, expected in about.pop("files").items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in store.read_chunks(f"{kind}/{name}"):
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != expected:
            raise Transient(f"{kind}/{name} does not have the sha256 that it was sent with: run again")
    return about


def send_error(store: Store, error: StageError) -> None:
    """Leave word of what stopped the training."""
    store.write(ERROR, json.dumps({"exit_code": error.exit_code, "message": str(error)}).encode())


def received_error(store: Store) -> StageError | None:
    """What stopped the training, if it left word."""
    try:
        found = json.loads(store.read(ERROR))
    except FileNotFoundError:
        return None
    return error_from_exit_code(found["exit_code"], found["message"])
