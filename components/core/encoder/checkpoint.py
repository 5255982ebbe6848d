"""Loading and saving encoders as Hugging Face directories: safetensors, tokenizer, encoder.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from components.core.encoder import bidirectional  # noqa: F401  registers llama_bidirec
from components.core.encoder.config import EncoderConfig, read_encoder
from components.core.encoder.layout import check_modules, copy_originals, write_config, write_sentence_transformers
from components.core.encoder.model import Encoder
from components.core.encoder.source import base_model_files, check_remote_code
from components.core.errors import InputError

transformers_logging.disable_progress_bar()


def default_device() -> torch.device:
    """The first GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    config: EncoderConfig, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Encoder:
    """The base model that ``config`` names, in ``dtype`` (default: bfloat16 on a GPU, float32 on a CPU).

    Raises InputError when it does not exist, is no model or is not the pinned one, ActionNeeded when the hub
    refuses access.
    """
    return _load(base_model_files(config), config, device, dtype)


def load_architecture(config: EncoderConfig) -> PretrainedConfig:
    """What kind of model the base model is, without its weights. Raises what ``load_base`` raises."""
    source = base_model_files(config)
    _check_code(source, config)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _explain(source, error) from error


def load_checkpoint(
    directory: Path, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Encoder:
    """The encoder saved in ``directory`` by ``save_checkpoint``.

    Raises InputError when it is no checkpoint.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} is no checkpoint (no config.json): give a Hugging Face directory")
    return _load(directory, read_encoder(directory), device, dtype)


def save_checkpoint(encoder: Encoder, directory: Path) -> None:
    """Write weights (safetensors), ``encoder.json``, and all that the model which ``encoder`` was made of came with."""
    directory.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save_pretrained(directory, safe_serialization=True)
    if encoder.source is None:
        encoder.tokenizer.save_pretrained(directory)
    else:
        copy_originals(encoder.source, directory)
    write_config(encoder.backbone, encoder.source, directory)
    encoder.config.write(directory)
    write_sentence_transformers(encoder.config, encoder.dimension, encoder.source, directory)


def _load(source: Path, config: EncoderConfig, device: torch.device | None, dtype: torch.dtype | None) -> Encoder:
    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    _check_code(source, config)
    check_modules(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        tokenizer.padding_side = "right"
        backbone, loading = AutoModel.from_pretrained(
            source,
            trust_remote_code=config.trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explain(source, error) from error
    _check_complete(source, tokenizer, loading["missing_keys"])
    return Encoder(backbone, tokenizer, config, source).to(device).eval()


def _check_code(source: Path, config: EncoderConfig) -> None:
    if config.trust_remote_code:
        check_remote_code(source, config.remote_code_sha256)


def _check_complete(source: Path, tokenizer: PreTrainedTokenizerBase, missing: Iterable[str]) -> None:
    """transformers fills in random weights and an empty vocabulary for what is missing, and only warns."""
    # BERT's pooler is not used here, and many embedding models are published without it.
    weights = sorted(name for name in missing if not name.startswith("pooler."))
    if weights:
        raise InputError(
            f"{source} has no weights for {len(weights)} tensors, {weights[0]} among them: it is not a complete model"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"{source} has no tokenizer (its vocabulary is empty): copy the tokenizer files beside it")


def _explain(source: Path, error: Exception) -> Exception:
    if "trust_remote_code" in str(error):
        return InputError(
            f"{source} needs its own code: review it, then set trust_remote_code, base_model_revision and "
            f"remote_code_sha256"
        )
    first = str(error).strip().split("\n")[0]
    return InputError(f"{source} cannot be loaded as a model ({first}): check base_model or give its directory")
