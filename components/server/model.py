"""The exported model in memory: text to vectors with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from components.core.encoder.config import Kind, read_encoder
from components.core.errors import InputError
from components.core.model_manifest import check_files, read_model_manifest

Truncate = Literal["NONE", "START", "END"]


class TooLong(ValueError):
    """A text has more tokens than the model was trained for, and truncation was not asked for."""


@dataclass(frozen=True)
class Limits:
    """Longest query and passage in tokens, and length of a vector."""

    query: int
    passage: int
    dimension: int


class OnnxModel:
    """An exported model. Raises InputError when a file is missing or is not the one of its manifest."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self.manifest = read_model_manifest(directory)
        check_files(directory, self.manifest)
        self.encoder = read_encoder(directory)
        self.limits = Limits(self.encoder.query_max_length, self.encoder.passage_max_length, self.manifest.dimension)
        self._tokenizer = Tokenizer.from_file(str(directory / "onnx" / "tokenizer" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        options = onnxruntime.SessionOptions()
        if threads:
            options.intra_op_num_threads = threads
        available = onnxruntime.get_available_providers()
        wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        try:
            self._session = onnxruntime.InferenceSession(
                str(directory / "onnx" / "model.onnx"), options, providers=wanted
            )
        except Exception as error:
            raise InputError(f"{directory}: ONNX Runtime cannot load onnx/model.onnx ({error})") from error

    @property
    def digest(self) -> str:
        """Identity of the model: the digest of its manifest."""
        return self.manifest.digest

    def tokenize(self, texts: Sequence[str], kind: Kind, truncate: Truncate) -> list[list[int]]:
        """Token ids of each text with the model's prefix, special tokens included.

        Raises TooLong for a text over the limit when ``truncate`` is NONE; START and END say which end is cut.
        """
        prefix, limit = self.encoder.prefix(kind), self.encoder.max_length(kind)
        room = limit - self._special_tokens
        # Special tokens come after the cut, so that the cut never takes them.
        encoded = self._tokenizer.encode_batch([prefix + text for text in texts], add_special_tokens=False)
        for position, encoding in enumerate(encoded):
            if len(encoding.ids) > room:
                if truncate == "NONE":
                    raise TooLong(
                        f"input {position} has {len(encoding.ids) + self._special_tokens} tokens, the limit for a "
                        f"{kind} is {limit}: shorten it or send truncate=END"
                    )
                encoding.truncate(room, direction="right" if truncate == "END" else "left")
        return [self._tokenizer.post_process(encoding).ids for encoding in encoded]

    def embed(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of tokenised texts: float32 [len(ids), dimension]."""
        longest = max(len(row) for row in ids)
        padded = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(padded)
        for number, row in enumerate(ids):
            padded[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return self._session.run(["embeddings"], {"input_ids": padded, "attention_mask": mask})[0]
