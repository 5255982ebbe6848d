"""Training states on durable storage: only a whole one of the same run is ever continued from.

    <checkpoint_uri>/<run>/run.json                      what the run's result depends on; <run> is its hash
    <checkpoint_uri>/<run>/step-00000120-9f3c/*.safetensors, state.json
    <checkpoint_uri>/<run>/step-00000120-9f3c/manifest.json    last: sha256 of every file, and of itself

A pod that is started again has the same data and settings, so it finds its predecessor's states; any other run, even
one with the same ``checkpoint_uri``, has a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from components.core.errors import StageError
from components.core.store import Store
from components.core.store.errors import summarize_error, to_stage_error

_log = logging.getLogger(__name__)
FORMAT = "nemotron-embed-kubeflow.training-state/1"
MANIFEST, STATE, RUN = "manifest.json", "state.json", "run.json"
# Tensors of one file: little beside the memory of a node, and made in a moment; the training thread waits for it.
_FILE_BYTES = 256 * 1024**2
# Runs that are looked at for what tells them apart: a team's prefix may hold many.
_COMPARED = 50
_NAME = re.compile(r"step-(\d{8,})-[0-9a-f]{8}")


@dataclass(frozen=True)
class Saved:
    """A training state: the step after which it was taken, tensors by name, and everything else as JSON."""

    step: int
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


class Damaged(Exception):
    """A saved state is not what was written, or was never written to its end."""


class Checkpoints:
    """The states of one run. ``identity`` is everything that its result depends on, as JSON values.

    Raises StageError when ``storage`` cannot be read and written: see ``to_stage_error``.
    """

    def __init__(self, storage: Store, identity: Mapping[str, Any], *, keep: int, where: str) -> None:
        self._storage, self._keep, self._where = storage, keep, where
        self._identity = json.loads(json.dumps(dict(identity)))
        self.run = _digest(self._identity)[:16]
        self._kept: list[str] = []
        try:
            storage.write(f"{self.run}/{RUN}", _json(self._identity))
        except Exception as error:
            raise self._unusable(error) from None

    def newest(self) -> Saved | None:
        """The state after the latest step that is whole; None, with the reason in the log, when there is none."""
        try:
            names = self._storage.list_names()
        except Exception as error:
            raise self._unusable(error) from None
        for folder in sorted(_folders(names, self.run), reverse=True):
            try:
                saved = self._load(folder)
            except Damaged as damage:
                _log.warning("%s/%s is not continued from: %s", self._where, folder, damage)
                continue
            except Exception as error:
                raise self._unusable(error) from None
            self._kept = [folder]
            return saved
        self._say_why_not(names)
        return None

    def save(self, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Return when the state after ``step`` is durable, then remove all but the last few.

        ``tensors`` lie in the host's memory. Raises what the storage raises; earlier states are still there then.
        """
        folder = f"{self.run}/step-{step:08}-{secrets.token_hex(4)}"
        files: dict[str, dict[str, Any]] = {}
        for name, body in _files(tensors, about):
            self._storage.write(f"{folder}/{name}", body)
            files[name] = {"sha256": _sha256(body), "bytes": len(body)}
        manifest = {"format": FORMAT, "run": self.run, "step": step, "files": files}
        self._storage.write(f"{folder}/{MANIFEST}", _json({"manifest": manifest, "sha256": _digest(manifest)}))
        self._kept = [*self._kept, folder][-self._keep :]
        try:
            self._prune(step)
        except Exception as error:
            _log.warning("%s: old states could not be removed (%s)", self._where, summarize_error(error))

    def _prune(self, step: int) -> None:
        """Remove what is older than the states kept, unfinished ones among them."""
        names = self._storage.list_names(f"{self.run}/")
        for folder in _folders(names, self.run):
            if folder in self._kept or _step_of(folder) > step:
                continue
            inside = [name for name in names if name.startswith(f"{folder}/")]
            # Without its manifest the rest is no state any more, wherever this is cut short.
            self._storage.delete(sorted(inside, key=lambda name: not name.endswith(MANIFEST)))

    def _load(self, folder: str) -> Saved:
        manifest = self._manifest(folder)
        tensors: dict[str, Tensor] = {}
        about: dict[str, Any] = {}
        for name, expected in manifest["files"].items():
            try:
                body = self._storage.read(f"{folder}/{name}")
            except FileNotFoundError:
                raise Damaged(f"{name} is missing") from None
            if len(body) != expected["bytes"] or _sha256(body) != expected["sha256"]:
                raise Damaged(f"{name} does not have the sha256 of its manifest")
            if name == STATE:
                about = json.loads(body)
            else:
                tensors |= safetensors.torch.load(body)
        return Saved(manifest["step"], tensors, about)

    def _manifest(self, folder: str) -> dict[str, Any]:
        try:
            content = json.loads(self._storage.read(f"{folder}/{MANIFEST}"))
            manifest: dict[str, Any] = content["manifest"]
            whole = _digest(manifest) == content["sha256"]
        except FileNotFoundError:
            raise Damaged("it was not written to its end") from None
        except (ValueError, KeyError, TypeError):
            raise Damaged(f"{MANIFEST} cannot be read") from None
        if not whole or manifest["format"] != FORMAT or manifest["run"] != self.run:
            raise Damaged(f"{MANIFEST} is not the one that was written")
        return manifest

    def _say_why_not(self, names: list[str]) -> None:
        """Log what tells the run apart from the one with states here that is most like it."""
        others: list[list[str]] = []
        for name in names:
            run, _, file = name.partition("/")
            if file != RUN or run == self.run or len(others) == _COMPARED or not any(_folders(names, run)):
                continue
            try:
                others.append(_differences(json.loads(self._storage.read(name)), self._identity))
            except Exception as error:
                _log.warning("%s/%s cannot be read (%s)", self._where, name, summarize_error(error))
        if others:
            closest = min(others, key=len)
            _log.info(
                "%s holds states of another run (%s): training starts from the base model",
                self._where, "; ".join(closest[:5]) or "unknown differences",
            )  # fmt: skip
        else:
            _log.info("%s holds no state to continue from: training starts from the base model", self._where)

    def _unusable(self, error: Exception) -> StageError:
        return to_stage_error(error, f"checkpoint_uri = {self._where}")


def _folders(names: list[str], run: str) -> Iterator[str]:
    """Folders of the states of ``run``, finished or not."""
    folders = {name.split("/")[1] for name in names if name.startswith(f"{run}/") and name.count("/") == 2}
    yield from (f"{run}/{folder}" for folder in folders if _NAME.fullmatch(folder))


def _step_of(folder: str) -> int:
    return int(folder.split("/")[1].split("-")[1])


def _files(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of a state, made one at a time."""
    part: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > _FILE_BYTES:
            yield f"tensors-{number:05}.safetensors", safetensors.torch.save(part)
            part, number, size = {}, number + 1, 0
        part[name] = tensor
        size += tensor.nbytes
    yield f"tensors-{number:05}.safetensors", safetensors.torch.save(part)
    yield STATE, _json(about)


def _differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """What differs, as text; digests are only named."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = sorted(theirs.keys() | ours.keys())
        return [line for n in names for line in _differences(theirs.get(n), ours.get(n), n)]
    if theirs == ours:
        return []
    if isinstance(ours, str) and re.fullmatch("[0-9a-f]{64}", ours):
        return [f"other {where.replace('_', ' ')}"]
    return [f"{where} was {theirs!r}, is {ours!r}"]


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _digest(content: Any) -> str:
    return _sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
