"""Vectors of many texts by one model: from the cache where it has them, else by one process or by one per GPU."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.core.distributed.launch import launch
from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.checkpoint import load_base, load_checkpoint
from components.core.encoder.config import EncoderConfig, Kind
from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.retrieval.embedding_cache import EmbeddingCache, cache_space, model_digest

# The base model that the settings name, or the directory of a checkpoint.
ModelSource = EncoderConfig | Path

# Texts encoded before their vectors are cached: what a kill can cost, and the size of one file of the cache.
TEXTS_PER_CHUNK = 32_768
# Larger matrices lie in a temporary file, which the operating system keeps in memory where there is room.
_IN_MEMORY_BYTES = 4 * 1024**3
_OUT_OF_MEMORY = (
    "does not fit into the accelerator's memory: take a GPU with more memory, end what else runs on it, or take a "
    "smaller base_model"
)


@dataclass(frozen=True)
class TextGroup:
    """Texts of one kind, and the label under which the progress of encoding them is logged."""

    texts: Sequence[str]
    kind: Kind
    label: str


@dataclass(frozen=True)
class EncodedTexts:
    """Vectors of a ``TextGroup``.

    Attributes:
        vectors: float32 [texts, dimension], in the order of the texts.
        num_encoded: How many of the texts were not in the cache.
        seconds: How long encoding these took.
    """

    vectors: np.ndarray
    num_encoded: int
    seconds: float


@dataclass(frozen=True)
class EncodeOptions:
    """How texts are encoded.

    Attributes:
        batch_tokens: Tokens of one forward pass.
        cache_uri: Directory or bucket of the vector cache; None uses none.
        num_processes: Processes that share the texts, each with a GPU of its own.
        min_dimension: Models with shorter vectors are refused.
    """

    batch_tokens: int
    cache_uri: str | None = None
    num_processes: int = 1
    min_dimension: int = 1


def encode_texts(model: ModelSource, groups: Sequence[TextGroup], options: EncodeOptions) -> list[EncodedTexts]:
    """Return the vectors of each group of texts; afterwards nothing of the model is left in memory.

    Several processes get equal shares of the texts. How texts are batched changes their vectors by rounding only.

    Raises:
        InputError: If ``model`` cannot be loaded, its vectors have fewer than ``min_dimension`` numbers, or the model
            or ``batch_tokens`` do not fit into the accelerator's memory.
    """
    processes = options.num_processes
    if processes == 1:
        return _encode_in_process(model, groups, options)
    with tempfile.TemporaryDirectory(prefix="embedding-") as name:
        folder = Path(name)
        for number, group in enumerate(groups):
            for rank in range(processes):
                # One file per process: each reads its own texts only.
                share = {"texts": group.texts[rank::processes], "kind": group.kind, "label": group.label}
                with _texts_file(folder, number, rank).open("w", encoding="utf-8") as out:
                    json.dump(share, out)
        arguments = {
            "folder": name,
            "num_groups": len(groups),
            "model": _model_to_json(model),
            "options": asdict(options),
        }
        counts = launch("components.core.retrieval.encode_texts:encode_share", arguments, processes)
        return [
            EncodedTexts(_interleave_vectors(folder, number, len(group.texts), processes), *counts[number])
            for number, group in enumerate(groups)
        ]


def encode_share(
    process_group: ProcessGroup, folder: str, num_groups: int, model: Mapping[str, Any], options: Mapping[str, Any]
) -> list[tuple[int, float]]:
    """Encode this rank's share, every ``size``-th text of each group; return texts encoded and seconds by group."""
    directory, rank = Path(folder), process_group.rank
    shares = [
        TextGroup(**json.loads(_texts_file(directory, number, rank).read_text(encoding="utf-8")))
        for number in range(num_groups)
    ]
    results = _encode_in_process(_model_from_json(model), shares, EncodeOptions(**options))
    for number, result in enumerate(results):
        np.save(_vectors_file(directory, number, rank), result.vectors)
    return [
        (int(process_group.all_reduce_sum(result.num_encoded)[0]), process_group.all_reduce_max(result.seconds)[0])
        for result in results
    ]


def _encode_in_process(model: ModelSource, groups: Sequence[TextGroup], options: EncodeOptions) -> list[EncodedTexts]:
    gc.collect()
    torch.cuda.empty_cache()
    name = model if isinstance(model, Path) else model.base_model
    try:
        encoder = load_checkpoint(model) if isinstance(model, Path) else load_base(model)
    except torch.OutOfMemoryError:
        raise InputError(f"{name} {_OUT_OF_MEMORY}") from None
    if encoder.dimension < options.min_dimension:
        raise InputError(
            f"{name}: the vectors have {encoder.dimension} dimensions, and eval_dimensions has "
            f"{options.min_dimension}: leave it out"
        )
    digest = model_digest(encoder) if options.cache_uri else ""
    try:
        return [_encode_group(encoder, group, options, digest) for group in groups]
    except torch.OutOfMemoryError:
        raise InputError(
            f"{name}: {options.batch_tokens} tokens at once do not fit into the accelerator's memory: lower "
            f"encode_batch_tokens"
        ) from None


def _encode_group(encoder: Encoder, group: TextGroup, options: EncodeOptions, digest: str) -> EncodedTexts:
    texts = list(dict.fromkeys(group.texts))
    vectors = _allocate_matrix(len(texts), encoder.dimension)
    cache = None
    if options.cache_uri:
        cache = EmbeddingCache(options.cache_uri, cache_space(encoder, group.kind, digest))
    missing = cache.fill(texts, vectors) if cache else list(range(len(texts)))
    num_chunks = max(1, round(len(missing) / TEXTS_PER_CHUNK))
    started = time.perf_counter()
    for number, rows in enumerate(np.array_split(np.array(missing, dtype=np.int64), num_chunks) if missing else []):
        chunk = [texts[row] for row in rows]
        label = group.label + (f", part {number + 1} of {num_chunks}" if num_chunks > 1 else "")
        vectors[rows] = encoder.encode(chunk, group.kind, batch_tokens=options.batch_tokens, label=label)
        if cache:
            cache.add(chunk, vectors[rows])
    seconds = time.perf_counter() - started
    if len(texts) < len(group.texts):
        row_of = {text: row for row, text in enumerate(texts)}
        vectors = vectors[[row_of[text] for text in group.texts]]
    return EncodedTexts(vectors, len(missing), seconds)


def _allocate_matrix(rows: int, columns: int) -> np.ndarray:
    """Return an uninitialised float32 matrix, in a temporary file if it is large."""
    if rows * columns * 4 <= _IN_MEMORY_BYTES:
        return np.empty((rows, columns), dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, columns))


def _interleave_vectors(folder: Path, group: int, rows: int, processes: int) -> np.ndarray:
    parts = [np.load(_vectors_file(folder, group, rank), mmap_mode="r") for rank in range(processes)]
    vectors = _allocate_matrix(rows, parts[0].shape[1])
    for rank, part in enumerate(parts):
        vectors[rank::processes] = part
    return vectors


def _texts_file(folder: Path, group: int, rank: int) -> Path:
    return folder / f"{group}-{rank}.json"


def _vectors_file(folder: Path, group: int, rank: int) -> Path:
    return folder / f"{group}-{rank}.npy"


def _model_to_json(model: ModelSource) -> dict[str, Any]:
    return {"checkpoint": str(model)} if isinstance(model, Path) else {"base": model.model_dump(mode="json")}


def _model_from_json(model: Mapping[str, Any]) -> ModelSource:
    return Path(model["checkpoint"]) if "checkpoint" in model else EncoderConfig.model_validate(model["base"])
