"""The exported model as files: which there are, that they are whole, and what identifies the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.core.errors import InputError

MODEL_MANIFEST = "model-manifest.json"
PROBES = "probes.jsonl"
REFERENCE_VECTORS = "reference_vectors.safetensors"
FORMAT = 1


def describe_files(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """sha256 and size in bytes of each file."""
    return {
        name: {"sha256": _sha256(directory / name), "bytes": (directory / name).stat().st_size}
        for name in sorted(names)
    }


def model_digest(files: dict[str, dict[str, Any]]) -> str:
    """What identifies the model: sha256 (hex) over its files' names and sha256."""
    lines = "".join(f"{name} {entry['sha256']}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_model_manifest(directory: Path) -> dict[str, Any]:
    """``model-manifest.json`` of an exported model or its bundle. Raises InputError when it is none."""
    path = directory / MODEL_MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        complete = manifest["format"] == FORMAT and manifest["digest"] == model_digest(manifest["files"])
    except FileNotFoundError:
        raise InputError(f"{directory} has no {MODEL_MANIFEST}: give a directory that export made") from None
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise InputError(f"{path} is not whole: copy the exported model again")
    return manifest


def check_model_files(directory: Path) -> dict[str, Any]:
    """The manifest, after checking every file that it lists. Raises InputError naming the first that differs."""
    manifest = read_model_manifest(directory)
    for name, entry in sorted(manifest["files"].items()):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: {name} is missing: copy the exported model again")
        if _sha256(directory / name) != entry["sha256"]:
            raise InputError(f"{directory}: {name} does not have its sha256: copy the exported model again")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
