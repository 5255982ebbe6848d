"""Counts tokens as the embedding model will: with its own tokenizer, and without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from tokenizers import Tokenizer

from components.core.encoder.config import EncoderConfig, base_model_directory
from components.core.errors import ActionNeeded, InputError

_FILE = "tokenizer.json"


def make_passage_check(config: EncoderConfig) -> Callable[[str], bool]:
    """Return a function that tells whether a text is a passage short enough for the model.

    With the passage prefix and the special tokens, it has at most ``passage_max_length`` tokens.

    Raises:
        InputError: The base model has no tokenizer.
        ActionNeeded: The hub refuses the model, or does not answer.
    """
    tokenizer = _load_tokenizer(config)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix, limit = config.passage_prefix, config.passage_max_length
    return lambda text: len(tokenizer.encode(prefix + text).ids) <= limit


def _load_tokenizer(config: EncoderConfig) -> Tokenizer:
    source = Path(base_model_directory(config))
    try:
        path = source / _FILE if source.is_dir() else _fetch_from_hub(config)
        return Tokenizer.from_file(str(path))
    except (ActionNeeded, InputError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"base_model {config.base_model} has no {_FILE} that can be read ({error})") from None


def _fetch_from_hub(config: EncoderConfig) -> str:
    """Return the path of the file in the hub's cache on this machine, fetched when it is not there."""
    try:
        return hf_hub_download(config.base_model, _FILE, revision=config.base_model_revision)
    except GatedRepoError:
        raise ActionNeeded(f"the hub refuses {config.base_model}: accept its licence and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise InputError(f"base_model {config.base_model}: neither a directory nor a model on the hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ActionNeeded(f"the tokenizer of {config.base_model} cannot be fetched ({type(error).__name__})") from None
