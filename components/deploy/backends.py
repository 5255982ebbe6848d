"""How each serving image takes a model of one's own; NIM generations differ, so the version in the tag decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from components.core.bundle import Bundle
from components.core.errors import InputError
from components.core.parity import Precision
from components.deploy.component import DeployConfig

MODEL_PATH = "/mnt/models"  # KServe mounts the model here.
PORT = 8000
_NIM_PREFIXES = ("query: ", "passage: ")


@dataclass(frozen=True)
class Contract:
    """What an image must be told.

    ``model_folder`` lies below MODEL_PATH. Names of environment variables: ``model_env`` take the model's directory,
    ``cache_env`` the writable directory ``cache``, ``name_env`` the served name, ``length_env`` the longest text in
    tokens. ``prefixes`` are what it puts before queries and passages; None when the model decides. ``precision`` is
    what it computes in; None is the export's.
    """

    name: str
    serves: Literal["exported_model", "checkpoint"]
    user: int
    cache: str
    model_folder: str = ""
    model_env: tuple[str, ...] = ()
    cache_env: tuple[str, ...] = ()
    name_env: tuple[str, ...] = ()
    length_env: str = ""
    prefixes: tuple[str, str] | None = None
    precision: Precision | None = None
    gpus: int = 1

    @property
    def is_nim(self) -> bool:
        return bool(self.model_env)

    def environment(self, bundle: Bundle, served_name: str) -> dict[str, str]:
        """Environment variables that make the image serve the model under ``served_name``."""
        values = dict.fromkeys(self.model_env, f"{MODEL_PATH}/{self.model_folder}".rstrip("/"))
        values |= dict.fromkeys(self.cache_env, self.cache) | dict.fromkeys(self.name_env, served_name)
        if self.length_env:
            values[self.length_env] = str(_longest(bundle))
        return values

    def arguments(self, served_name: str) -> list[str]:
        """Arguments of the image's entry point; a NIM takes none."""
        if self.is_nim:
            return []
        return ["--model", MODEL_PATH, "--name", served_name, "--host", "0.0.0.0", "--port", str(PORT),
                "--drain-seconds", "10"]  # fmt: skip

    def require(self, bundle: Bundle) -> None:
        """Raise InputError for a model that the image would serve otherwise than it was trained."""
        encoder = bundle.encoder
        if self.serves == "exported_model" and bundle.manifest.model_format == "checkpoint":
            raise InputError(
                "this image serves an ONNX model, and export wrote none: set export.enabled=true, or give a NIM 2.x"
            )
        if self.prefixes and self.prefixes != (encoder.query_prefix, encoder.passage_prefix):
            raise InputError(
                f"a NIM puts {self.prefixes} before queries and passages, the model was trained with "
                f"{(encoder.query_prefix, encoder.passage_prefix)}: use backend=onnx, or train with the NIM's prefixes"
            )
        if self.length_env and encoder.query_max_length != encoder.passage_max_length:
            raise InputError(
                f"a NIM cuts all texts at one length, the model was trained with queries of "
                f"{encoder.query_max_length} and passages of {encoder.passage_max_length} tokens: use backend=onnx, "
                f"or train with equal lengths"
            )


ONNX_SERVER = Contract("onnx-server", "exported_model", user=10001, cache="/tmp", gpus=0)
# From the version on, up to the next entry's. Sources: NVIDIA's documentation of each generation; none was run here.
NIM_CONTRACTS: tuple[tuple[tuple[int, int], Contract | None], ...] = (
    ((0, 0), None),
    (
        (1, 10),
        Contract(
            "nim-onnx",
            "exported_model",
            user=1000,
            cache="/opt/nim/.cache",
            model_folder="onnx",
            model_env=("NIM_CUSTOM_MODEL",),
            cache_env=("NIM_CACHE_PATH",),
            name_env=("NIM_SERVED_MODEL_NAME",),
            length_env="NIM_TRITON_MAX_SEQ_LENGTH",
            prefixes=_NIM_PREFIXES,
        ),
    ),
    (
        (2, 0),
        Contract(
            "nim-checkpoint",
            "checkpoint",
            user=1000,
            cache="/opt/cache",
            # The recipe sets the first, NVIDIA's operator the second, for the same image.
            model_env=("NIM_MODEL_PATH", "NIM_ENGINE_MODEL_PATH"),
            name_env=("NIM_SERVED_MODEL_NAME",),
            length_env="NIM_PIPELINE_MAX_SEQ_LEN",
            precision="fp16",
        ),
    ),
    (
        (2, 4),
        Contract(
            "nim-checkpoint",
            "checkpoint",
            user=1000,
            cache="/opt/cache",
            model_env=("NIM_ENGINE_MODEL_PATH",),
            name_env=("NIM_ENGINE_MODEL_NAME",),
            length_env="NIM_PIPELINE_MAX_SEQ_LEN",
            precision="fp16",
        ),
    ),
    ((3, 0), None),
)


def contract(config: DeployConfig) -> Contract:
    """What ``serving_image`` must be told. Raises InputError for an image that is not pinned or not known."""
    image = config.serving_image
    repository, tag = _parse(image)
    if config.backend == "onnx":
        if repository.startswith("nvcr.io/nim/"):
            raise InputError(
                f"serving_image {image} is a NIM: for backend=onnx give the image that images/server builds"
            )
        return ONNX_SERVER
    version = re.match(r"v?(\d+)\.(\d+)(\.|$|-)", tag)
    if not version:
        raise InputError(
            f"serving_image {image}: a NIM's version decides how it takes a model: give it as tag (NAME:1.13.0, "
            f"NAME:1.13.0@sha256:...)"
        )
    found = (int(version[1]), int(version[2]))
    known = [entry for since, entry in NIM_CONTRACTS if since <= found][-1]
    if known is None:
        raise InputError(
            f"serving_image {image}: how a NIM {found[0]}.{found[1]} takes a model is not known: "
            f"give a version from 1.10 to 2.x, or backend=onnx"
        )
    return known


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


def _longest(bundle: Bundle) -> int:
    return max(bundle.encoder.query_max_length, bundle.encoder.passage_max_length)
