"""Loading and saving encoders as Hugging Face directories: safetensors, tokenizer, encoder.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from components.core.encoder import bidirectional  # noqa: F401  registers llama_bidirec
from components.core.encoder.config import EncoderConfig, base_model_directory, read_encoder
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError

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
    source = base_model_directory(config)
    if config.base_model_sha256:
        _check_sha256(source, config.base_model_sha256)
    return _load(source, config, device, dtype)


def load_checkpoint(
    directory: Path, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Encoder:
    """The encoder saved in ``directory`` by ``save_checkpoint``.

    Raises InputError when it is no checkpoint.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory} is no checkpoint (no config.json): give a Hugging Face directory")
    return _load(str(directory), read_encoder(directory), device, dtype)


def save_checkpoint(encoder: Encoder, directory: Path) -> None:
    """Write weights (safetensors), tokenizer, ``encoder.json`` and what sentence-transformers needs to load it."""
    directory.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save_pretrained(directory, safe_serialization=True)
    encoder.tokenizer.save_pretrained(directory)
    encoder.config.write(directory)
    _write_sentence_transformers(encoder, directory)


def _load(source: str, config: EncoderConfig, device: torch.device | None, dtype: torch.dtype | None) -> Encoder:
    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    # A directory that ships its own weights needs no revision.
    revision: dict[str, Any] = {} if Path(source).is_dir() else {"revision": config.base_model_revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code, **revision)
        tokenizer.padding_side = "right"
        backbone, loading = AutoModel.from_pretrained(
            source,
            trust_remote_code=config.trust_remote_code,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **revision,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _explain(source, error) from error
    _check_complete(source, tokenizer, loading["missing_keys"])
    return Encoder(backbone, tokenizer, config).to(device).eval()


def _check_complete(source: str, tokenizer: PreTrainedTokenizerBase, missing: Iterable[str]) -> None:
    """transformers fills in random weights and an empty vocabulary for what is missing, and only warns."""
    # BERT's pooler is not used here, and many embedding models are published without it.
    weights = sorted(name for name in missing if not name.startswith("pooler."))
    if weights:
        raise InputError(
            f"{source} has no weights for {len(weights)} tensors, {weights[0]} among them: it is not a complete model"
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"{source} has no tokenizer (its vocabulary is empty): copy the tokenizer files beside it")


def _explain(source: str, error: Exception) -> Exception:
    first = str(error).strip().split("\n")[0]
    if "gated" in str(error) or "401" in str(error) or "403" in str(error):
        return ActionNeeded(f"{source}: the hub refuses access ({first}): accept its licence, set HF_TOKEN")
    if "trust_remote_code" in str(error):
        return InputError(
            f"{source} needs its own code: review it, then set trust_remote_code=true and base_model_revision"
        )
    return InputError(f"{source} cannot be loaded as a model ({first}): check base_model or give its directory")


def _check_sha256(source: str, expected: str) -> None:
    weights = Path(source) / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{source} has no model.safetensors to check base_model_sha256 against")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{weights} has sha256 {found}, base_model_sha256 wants {expected}: it is not the pinned model"
        )


def _write_sentence_transformers(encoder: Encoder, directory: Path) -> None:
    """The files by which sentence-transformers (and vLLM) find pooling, normalisation and prefixes."""
    config = encoder.config
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    if config.l2_normalize:
        modules.append(("2", "2_Normalize", "Normalize"))
    listed = [
        {"idx": int(number), "name": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, path, kind in modules
    ]
    pooling = {
        "word_embedding_dimension": encoder.dimension,
        "pooling_mode_cls_token": config.pooling == "cls",
        "pooling_mode_mean_tokens": config.pooling == "avg",
        "pooling_mode_lasttoken": config.pooling == "last",
        "include_prompt": True,
    }
    prompts = {"query": config.query_prefix, "document": config.passage_prefix}
    _write_json(directory / "modules.json", listed)
    _write_json(directory / "1_Pooling" / "config.json", pooling)
    _write_json(directory / "sentence_bert_config.json", {"max_seq_length": config.passage_max_length})
    _write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if config.l2_normalize else "dot",
        },
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
