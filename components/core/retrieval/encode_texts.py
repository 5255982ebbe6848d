"""Vectors of many texts by one model: from the cache what is there, the rest by one process or by one per GPU."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.core.distributed.launch import launch
from components.core.distributed.process_group import Ranks
from components.core.encoder.checkpoint import load_base, load_checkpoint
from components.core.encoder.config import EncoderConfig, Kind
from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.retrieval.embedding_cache import EmbeddingCache, model_digest, space_of

# The base model that the settings name, or a checkpoint.
Model = EncoderConfig | Path

# Texts encoded before their vectors are kept: what a kill can cost, and the size of a file of the cache.
PIECE = 32_768
# Larger matrices lie in a temporary file, which memory only caches.
_IN_MEMORY_BYTES = 4 * 1024**3
_NO_ROOM = (
    "does not fit into the accelerator's memory: take a GPU with more memory, end what else runs on it, or take a "
    "smaller base_model"
)


@dataclass(frozen=True)
class Texts:
    """Texts of one kind, and what to call the work of encoding them."""

    texts: Sequence[str]
    kind: Kind
    what: str


@dataclass(frozen=True)
class Embedded:
    """``vectors``: float32 [texts, dimension]. ``encoded`` of the texts were not in the cache and took ``seconds``."""

    vectors: np.ndarray
    encoded: int
    seconds: float


@dataclass(frozen=True)
class How:
    """``cache_uri``: directory or bucket of the cache, None for none. ``processes``: each has a GPU of its own."""

    batch_tokens: int
    cache_uri: str | None = None
    processes: int = 1
    least_dimension: int = 1


def embed(model: Model, groups: Sequence[Texts], how: How) -> list[Embedded]:
    """The vectors of each group of texts. Nothing of the model stays in memory.

    Several processes share the texts among them, equally; a vector depends on how texts are batched by rounding only.
    Raises InputError for a model that is none, for vectors of fewer than ``least_dimension`` numbers, and where the
    model, or ``batch_tokens`` beside it, do not fit into the accelerator's memory.
    """
    if how.processes == 1:
        return _embed_here(model, groups, how)
    with tempfile.TemporaryDirectory(prefix="embedding-") as name:
        folder = Path(name)
        for number, group in enumerate(groups):
            for rank in range(how.processes):
                # A file for each process: none of them reads what is not its own.
                share = {"texts": group.texts[rank :: how.processes], "kind": group.kind, "what": group.what}
                with _texts_file(folder, number, rank).open("w", encoding="utf-8") as out:
                    json.dump(share, out)
        request = {"folder": name, "groups": len(groups), "model": _written(model), "how": vars(how)}
        figures = launch("components.core.retrieval.encode_texts:embed_share", request, how.processes)
        return [
            Embedded(_joined(folder, number, len(group.texts), how.processes), *figures[number])
            for number, group in enumerate(groups)
        ]


def embed_share(ranks: Ranks, folder: str, groups: int, model: Mapping[str, Any], how: Mapping[str, Any]) -> Any:
    """One process' share: every ``ranks.size``-th text of each group. Returns texts encoded and seconds by group."""
    shares = []
    for number in range(groups):
        shares.append(Texts(**json.loads(_texts_file(Path(folder), number, ranks.rank).read_text(encoding="utf-8"))))
    found = _embed_here(_read(model), shares, How(**how))
    for number, one in enumerate(found):
        np.save(_vectors_file(Path(folder), number, ranks.rank), one.vectors)
    return [(int(ranks.total(one.encoded)[0]), ranks.greatest(one.seconds)[0]) for one in found]


def _embed_here(model: Model, groups: Sequence[Texts], how: How) -> list[Embedded]:
    gc.collect()
    torch.cuda.empty_cache()
    name = model if isinstance(model, Path) else model.base_model
    try:
        encoder = load_checkpoint(model) if isinstance(model, Path) else load_base(model)
    except torch.OutOfMemoryError:
        raise InputError(f"{name} {_NO_ROOM}") from None
    if encoder.dimension < how.least_dimension:
        raise InputError(
            f"{name}: the vectors have {encoder.dimension} dimensions, and eval_dimensions has {how.least_dimension}: "
            f"leave it out"
        )
    digest = model_digest(encoder) if how.cache_uri else ""
    try:
        return [_embed_group(encoder, group, how, digest) for group in groups]
    except torch.OutOfMemoryError:
        raise InputError(
            f"{name}: {how.batch_tokens} tokens at once do not fit into the accelerator's memory: lower "
            f"encode_batch_tokens"
        ) from None


def _embed_group(encoder: Encoder, group: Texts, how: How, digest: str) -> Embedded:
    texts = list(dict.fromkeys(group.texts))
    vectors = _matrix(len(texts), encoder.dimension)
    cache = EmbeddingCache(how.cache_uri, space_of(encoder, group.kind, digest)) if how.cache_uri else None
    missing = cache.fill(texts, vectors) if cache else list(range(len(texts)))
    pieces = max(1, round(len(missing) / PIECE))
    started = time.perf_counter()
    for number, rows in enumerate(np.array_split(np.array(missing, dtype=np.int64), pieces) if missing else []):
        part = [texts[row] for row in rows]
        what = group.what + (f", part {number + 1} of {pieces}" if pieces > 1 else "")
        vectors[rows] = encoder.encode(part, group.kind, batch_tokens=how.batch_tokens, what=what)
        if cache:
            cache.add(part, vectors[rows])
    seconds = time.perf_counter() - started
    if len(texts) < len(group.texts):
        row = {text: number for number, text in enumerate(texts)}
        vectors = vectors[[row[text] for text in group.texts]]
    return Embedded(vectors, len(missing), seconds)


def _matrix(rows: int, columns: int) -> np.ndarray:
    """An empty float32 matrix."""
    if rows * columns * 4 <= _IN_MEMORY_BYTES:
        return np.empty((rows, columns), dtype=np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, columns))


def _joined(folder: Path, group: int, rows: int, processes: int) -> np.ndarray:
    parts = [np.load(_vectors_file(folder, group, rank), mmap_mode="r") for rank in range(processes)]
    vectors = _matrix(rows, parts[0].shape[1])
    for rank, part in enumerate(parts):
        vectors[rank::processes] = part
    return vectors


def _texts_file(folder: Path, group: int, rank: int) -> Path:
    return folder / f"{group}-{rank}.json"


def _vectors_file(folder: Path, group: int, rank: int) -> Path:
    return folder / f"{group}-{rank}.npy"


def _written(model: Model) -> dict[str, Any]:
    return {"checkpoint": str(model)} if isinstance(model, Path) else {"base": model.model_dump(mode="json")}


def _read(model: Mapping[str, Any]) -> Model:
    return Path(model["checkpoint"]) if "checkpoint" in model else EncoderConfig.model_validate(model["base"])
