"""The exported model in memory, which turns texts into vectors with ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from components.core.encoder.config import Kind, read_encoder
from components.core.errors import InputError
from components.core.serving.api import Truncate
from components.core.serving.model_manifest import check_files, read_model_manifest

_GPU_BATCH_TOKENS, _CPU_BATCH_TOKENS = 16384, 512
_GPU = "CUDAExecutionProvider"
# ONNX Runtime fuses an addition with the normalisation after it, and is a tenth slower on a CPU for it (1.32, BERT).
_SLOWER_ON_CPU = ["SkipLayerNormFusion"]


def count_usable_cores() -> int:
    """Return how many cores this process may use: those of its affinity, or fewer when its container has a CPU limit.

    ONNX Runtime counts the machine's, and a pod with a limit of 4 on 96 cores would be throttled most of the time.
    """
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


class TextTooLong(ValueError):
    """A text has more tokens than the model was trained for, and truncation was not asked for."""


@dataclass(frozen=True)
class RequestLimits:
    """Longest query and passage in tokens, and length of a vector."""

    query: int
    passage: int
    dimension: int


class OnnxModel:
    """An exported model in ONNX Runtime. Raises InputError when a file is missing or not the one of its manifest."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self.manifest = read_model_manifest(directory)
        if self.manifest.model_format != "onnx":
            raise InputError(f"{directory} holds a checkpoint and no ONNX model: export with enabled=true")
        check_files(directory, self.manifest)
        self.encoder = read_encoder(directory)
        self.limits = RequestLimits(
            self.encoder.query_max_length, self.encoder.passage_max_length, self.manifest.dimension
        )
        self._tokenizer = Tokenizer.from_file(str(directory / "onnx" / "tokenizer" / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        options = onnxruntime.SessionOptions()
        self._threads = threads or count_usable_cores()
        options.intra_op_num_threads = self._threads
        # Threads that wait in a loop take the cores from the tokenizer and from whoever else is on the node.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Batches at the same time share the threads: work is dealt out in smaller and smaller parts, not in equal ones.
        options.add_session_config_entry("session.dynamic_block_base", "4")
        available = onnxruntime.get_available_providers()
        providers = [name for name in (_GPU, "CPUExecutionProvider") if name in available]
        try:
            self._session = onnxruntime.InferenceSession(
                str(directory / "onnx" / "model.onnx"),
                options,
                providers=providers,
                disabled_optimizers=[] if _GPU in providers else _SLOWER_ON_CPU,
            )
        except Exception as error:
            raise InputError(f"{directory}: ONNX Runtime cannot load onnx/model.onnx ({error})") from error

    @property
    def batch_tokens(self) -> int:
        """Tokens, padding included, that are best computed at once: a CPU's caches hold the activations of few."""
        return _GPU_BATCH_TOKENS if self._on_gpu else _CPU_BATCH_TOKENS

    @property
    def batches_at_once(self) -> int:
        """Batches that are best computed at the same time.

        Threads that share the products of one batch wait for each other at every layer. With a batch for each thread
        they seldom do, and a batch that is alone still has them all.
        """
        return 1 if self._on_gpu else self._threads

    @property
    def _on_gpu(self) -> bool:
        return bool(self._session.get_providers()[0] == _GPU)

    @property
    def digest(self) -> str:
        """Identity of the model: the digest of its manifest."""
        return self.manifest.digest

    def tokenize(self, texts: Sequence[str], kind: Kind, truncate: Truncate) -> list[list[int]]:
        """Return the token ids of each text with the model's prefix, special tokens included.

        Raises TextTooLong for a text over the limit when ``truncate`` is NONE; START and END say which end is cut.
        """
        prefix, limit = self.encoder.prefix(kind), self.encoder.max_length(kind)
        room = limit - self._special_tokens
        # Special tokens come after the cut, so that the cut never takes them.
        encoded = self._tokenizer.encode_batch([prefix + text for text in texts], add_special_tokens=False)
        for position, encoding in enumerate(encoded):
            if len(encoding.ids) > room:
                if truncate == "NONE":
                    raise TextTooLong(
                        f"input {position} has {len(encoding.ids) + self._special_tokens} tokens, the limit for a "
                        f"{kind} is {limit}: shorten it or send truncate=END"
                    )
                encoding.truncate(room, direction="right" if truncate == "END" else "left")
        return [self._tokenizer.post_process(encoding).ids for encoding in encoded]

    def embed(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the vectors of tokenised texts: float32 [len(ids), dimension]."""
        longest = max(len(row) for row in ids)
        padded = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros_like(padded)
        for number, row in enumerate(ids):
            padded[number, : len(row)] = row
            mask[number, : len(row)] = 1
        inputs: dict[str, np.ndarray] = {"input_ids": padded, "attention_mask": mask}
        if self.manifest.dimensions_input:
            inputs["dimensions"] = np.full(len(ids), self.limits.dimension, dtype=np.int64)
        vectors: np.ndarray = self._session.run(["embeddings"], inputs)[0]
        return vectors
