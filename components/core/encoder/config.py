"""What mining, training, evaluation, export and serving must agree on, written beside the weights."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.core.errors import InputError
from components.core.settings import Settings, load, setting

ENCODER_FILE = "encoder.json"
_PACKAGE = "package:"
Kind = Literal["query", "passage"]


class EncoderConfig(Settings):
    """How text becomes a vector. Defaults are those of llama-nemotron-embed-1b-v2 (the ``llama`` profile)."""

    base_model: str = setting(
        "nvidia/llama-nemotron-embed-1b-v2",
        "Base model: Hugging Face name, directory, or `package:NAME/DIR` for weights inside an installed package",
        form=True,
        min_length=1,
    )
    base_model_revision: str | None = setting(
        None, "Commit of the base model on the hub (40 hex digits); required for `trust_remote_code`"
    )
    base_model_sha256: str | None = setting(
        None, "sha256 of the base model's `model.safetensors`; anything else is refused", pattern="^[0-9a-f]{64}$"
    )
    trust_remote_code: bool = setting(
        False, "Run the model's own Python code; only with `base_model_revision` and `remote_code_sha256`"
    )
    remote_code_sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = setting(
        {}, "The Python files of the base model that may run: `{modeling_x.py: sha256}`; any other is refused"
    )
    query_prefix: str = setting("query: ", "Text put before every query")
    passage_prefix: str = setting("passage: ", "Text put before every passage")
    query_max_length: int = setting(512, "Longest query in tokens, prefix included; the rest is cut", ge=4)
    passage_max_length: int = setting(512, "Longest passage in tokens, prefix included; the rest is cut", ge=4)
    pooling: Literal["avg", "cls", "last"] = setting("avg", "How token vectors are combined into one vector")
    l2_normalize: bool = setting(True, "Scale vectors to length 1, so that the dot product is the cosine")

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> EncoderConfig:
        if self.trust_remote_code and not self.base_model_revision:
            raise ValueError("trust_remote_code needs base_model_revision: pin the commit whose code may run")
        if self.trust_remote_code and not self.remote_code_sha256:
            raise ValueError("trust_remote_code needs remote_code_sha256: name the files that you reviewed")
        return self

    def prefix(self, kind: Kind) -> str:
        """The text put before a query or a passage."""
        return self.query_prefix if kind == "query" else self.passage_prefix

    def max_length(self, kind: Kind) -> int:
        """The longest query or passage, in tokens."""
        return self.query_max_length if kind == "query" else self.passage_max_length

    def encoder(self) -> EncoderConfig:
        """Only the encoder's settings, when this is a stage's settings that include them."""
        return EncoderConfig.model_validate({name: getattr(self, name) for name in EncoderConfig.model_fields})

    def write(self, directory: Path) -> None:
        """Write ``encoder.json`` into ``directory``."""
        text = self.encoder().model_dump_json(indent=2)
        (directory / ENCODER_FILE).write_text(text + "\n", encoding="utf-8")


def read_encoder(directory: Path) -> EncoderConfig:
    """The settings that ``encoder.json`` in ``directory`` records.

    Raises InputError when the file is missing or is not one.
    """
    path = directory / ENCODER_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{directory} has no {ENCODER_FILE}: it says how the model was trained (prefixes, lengths, pooling); "
            f"write one, or give a directory that finetune made"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): write it again") from None
    return load(EncoderConfig, values, stage=str(path))


def base_model_directory(config: EncoderConfig) -> str:
    """``base_model`` as a directory, or as the hub name it is."""
    name = config.base_model
    if name.startswith(_PACKAGE):
        package, _, inside = name.removeprefix(_PACKAGE).partition("/")
        try:
            return str(importlib.resources.files(package).joinpath(inside))
        except ModuleNotFoundError:
            raise InputError(f"base_model {name}: the package {package} is not installed: pip install it") from None
    return name
