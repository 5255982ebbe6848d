"""The files of a base model, fetched from the hub where needed, and held against what they must hash to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from components.core.encoder.config import EncoderConfig, base_model_directory
from components.core.errors import ActionNeeded, InputError

_WEIGHTS = "model.safetensors"
# Not the other formats that a hub's repository holds beside the safetensors.
_WANTED = ("*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.safetensors", "LICENSE*", "NOTICE*")
_UNWANTED = ("onnx/*", "openvino/*", "original/*")


def base_model_files(config: EncoderConfig) -> Path:
    """A directory with the files of ``base_model``, downloaded when it is a name on the hub.

    Raises InputError when there is no such model or it is not the pinned one, ActionNeeded when the hub refuses access.
    """
    base_model = base_model_directory(config)
    directory = Path(base_model) if Path(base_model).is_dir() else _download(base_model, config.base_model_revision)
    if config.base_model_sha256:
        _check_weights(directory, config.base_model_sha256)
    return directory


def check_remote_code(directory: Path, allowed: dict[str, str]) -> None:
    """Raise InputError unless every Python file of ``directory`` is in ``allowed``: its name, and its sha256.

    Code of other repositories, which ``config.json`` may name, is refused: nobody could tell what it will be tomorrow.
    """
    digests = {path.relative_to(directory).as_posix(): _sha256(path) for path in sorted(directory.rglob("*.py"))}
    for name, digest in digests.items():
        if allowed.get(name) != digest:
            wanted = f"remote_code_sha256 wants {allowed[name]}" if name in allowed else "remote_code_sha256 omits it"
            raise InputError(f"{directory / name} has sha256 {digest}, {wanted}: review the code, then allow this file")
    for file in ("config.json", "tokenizer_config.json"):
        for where in _code_of(directory / file):
            if "--" in where:
                raise InputError(f"{directory / file} takes code from another repository ({where}): it is not run")


def _download(name: str, revision: str | None) -> Path:
    try:
        directory = snapshot_download(
            name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except LocalEntryNotFoundError as error:
        raise ActionNeeded(
            f"{name} is not on this machine and the hub cannot be reached: give base_model as a directory"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        if any(sign in str(error) for sign in ("gated", "401", "403")):
            raise ActionNeeded(f"{name}: the hub refuses access ({first}): accept its licence, set HF_TOKEN") from error
        raise InputError(f"{name} cannot be found ({first}): check base_model or give its directory") from error
    return Path(directory)


def _check_weights(directory: Path, expected: str) -> None:
    weights = directory / _WEIGHTS
    if not weights.is_file():
        raise InputError(f"{directory} has no {_WEIGHTS} to check base_model_sha256 against")
    digest = _sha256(weights)
    if digest != expected:
        raise InputError(
            f"{weights} has sha256 {digest}, base_model_sha256 wants {expected}: it is not the pinned model"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code_of(path: Path) -> list[str]:
    """What ``auto_map`` of a configuration names as code; a tokenizer's entry is a pair."""
    if not path.is_file():
        return []
    entries = json.loads(path.read_text(encoding="utf-8")).get("auto_map", {}).values()
    return [str(part) for entry in entries for part in (entry if isinstance(entry, list) else [entry]) if part]
