"""Which image serves, and what it must be told."""

from __future__ import annotations

import re

from components.core.errors import InputError
from components.core.pinned_images import read_pins
from components.deploy.backends.contracts import ONNX_SERVER, VLLM_CONTRACTS, Contract, Table, list_nim_contracts
from components.deploy.component import DeployConfig

_PINS = read_pins()
DEFAULT_IMAGES = {
    "nim": _PINS["NIM_SERVER"],
    "nim-operator": _PINS["NIM_SERVER"],
    "vllm": _PINS["VLLM_SERVER"],
}
_NIM_REPOSITORY = "nvcr.io/nim/"


def select_image(config: DeployConfig) -> str:
    """The image that serves. Raises InputError when the backend has no usual one."""
    if image := config.serving_image or DEFAULT_IMAGES.get(config.backend):
        return image
    raise InputError(
        f"backend={config.backend} has no image of its own: set serving_image to the image `server` of this project"
    )


def select_contract(config: DeployConfig) -> Contract:
    """What the serving image must be told. Raises InputError for one that is not pinned, not known or another's."""
    name = select_image(config)
    repository, tag = _parse(name)
    if config.backend not in ("nim", "nim-operator") and repository.startswith(_NIM_REPOSITORY):
        raise InputError(
            f"serving_image {name} is a NIM: for backend={config.backend} give another image, or set backend=nim"
        )
    if config.backend == "onnx":
        return ONNX_SERVER
    if config.backend == "vllm":
        return _by_version("vLLM", name, tag, VLLM_CONTRACTS, example="v0.24.0", known="0.23 to 0.x, or NVIDIA's 26.06")
    return _by_version(
        "a NIM", name, tag, list_nim_contracts(config.model_format), example="1.13.0", known="1.10 to 2.x"
    )


def _by_version(what: str, name: str, tag: str, table: Table, *, example: str, known: str) -> Contract:
    version = re.match(r"v?(\d+)\.(\d+)(\.|$|-)", tag)
    if not version:
        raise InputError(
            f"serving_image {name}: the version of {what} decides how it takes a model: give it as tag "
            f"(NAME:{example}, NAME:{example}@sha256:...)"
        )
    major_minor = (int(version[1]), int(version[2]))
    contract = [entry for since, entry in table if since <= major_minor][-1]
    if contract is None:
        raise InputError(
            f"serving_image {name}: how {what} {major_minor[0]}.{major_minor[1]} takes a model is not known: "
            f"give a version from {known}, or backend=onnx"
        )
    return contract


def _parse(image: str) -> tuple[str, str]:
    name, at, digest = image.partition("@")
    if at and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise InputError(f"serving_image {image}: {digest} is no digest: give sha256: and 64 hex digits")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, ""
    if (not tag and not digest) or tag == "latest":
        raise InputError(f"serving_image {image}: name an image with a fixed tag or digest, never latest")
    return repository, tag
