"""Vectors of texts, kept under everything they depend on, so that mining and evaluation encode a text once.

A cache is a directory or a prefix of a bucket. For each model with its settings it has a folder of segments, two files
each: ``NAME.vectors``, float32 rows, and ``NAME.keys``, which says whose they are and what their sha256 is; NAME is the
sha256 of the keys. The keys are written last and nothing is ever written twice, so a reader sees whole segments or
none, whoever else reads, writes and deletes. What does not fit its sha256 is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder
from components.core.store import Store, open_store
from components.core.store.errors import summarize_error, to_stage_error

FORMAT = 1
_KEYS, _VECTORS = ".keys", ".vectors"
_KEY_BYTES = 16
_READERS = 8
# Of the model's configuration: what says where it came from, not what it computes.
_ORIGIN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_log = logging.getLogger(__name__)


class Segment(NamedTuple):
    """Keys of texts, in the order of the rows of ``name``.vectors; what that file holds."""

    name: str
    keys: list[bytes]
    dimension: int
    sha256: str


class EmbeddingCache:
    """The vectors of one model with one set of settings: a "space" of the cache at ``uri``.

    Raises StageError when ``uri`` cannot be read. Later failures cost the vectors concerned, and a warning.
    """

    def __init__(self, uri: str, space: str, *, setting: str = "embedding_cache_uri") -> None:
        self._where = f"{setting} = {uri}"
        self._store: Store = open_store(uri, setting=setting)
        self._space = space
        try:
            names = self._store.list_names(f"{space}/")
        except Exception as error:
            raise to_stage_error(error, self._where) from None
        self._heads = [name for name in names if name.endswith(_KEYS)]

    def fill(self, texts: Sequence[str], vectors: np.ndarray) -> list[int]:
        """Write the vectors that are known into ``vectors`` [texts, dimension]; return the rows that are not."""
        missing = {text_key(text): row for row, text in enumerate(texts)}
        for segment in self._segments():
            hits = [(place, key) for place, key in enumerate(segment.keys) if key in missing]
            if not hits or segment.dimension != vectors.shape[1]:
                continue
            body = self._read(segment.name + _VECTORS, segment.sha256)
            if body is None:
                continue
            known = np.frombuffer(body, dtype="<f4").reshape(-1, segment.dimension)
            rows = [missing.pop(key) for _, key in hits]
            vectors[rows] = known[[place for place, _ in hits]]
        return sorted(missing.values())

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Keep the vectors [texts, dimension] of ``texts``."""
        body = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        about = {"texts": len(texts), "dimension": vectors.shape[1], "sha256": hashlib.sha256(body).hexdigest()}
        head = json.dumps(about).encode() + b"\n" + b"".join(map(text_key, texts))
        name = f"{self._space}/{hashlib.sha256(head).hexdigest()[:32]}"
        try:
            self._store.write(name + _VECTORS, body)
            self._store.write(name + _KEYS, head)
        except Exception as error:
            _log.warning("%s: %d vectors could not be kept: %s", self._where, len(texts), summarize_error(error))

    def _segments(self) -> Iterator[Segment]:
        with ThreadPoolExecutor(_READERS) as pool:
            for name, head in zip(self._heads, pool.map(self._read, self._heads), strict=True):
                stem = name.removesuffix(_KEYS)
                if head is None:
                    continue
                if hashlib.sha256(head).hexdigest()[:32] != stem.rpartition("/")[2]:
                    _log.warning("%s: %s is damaged and passed over: remove it", self._where, name)
                    continue
                about, _, keys = head.partition(b"\n")
                description = json.loads(about)
                split = [keys[at : at + _KEY_BYTES] for at in range(0, len(keys), _KEY_BYTES)]
                yield Segment(stem, split, description["dimension"], description["sha256"])

    def _read(self, name: str, sha256: str | None = None) -> bytes | None:
        """The content of a file; None when it is gone, damaged or cannot be read."""
        try:
            body = self._store.read(name)
        except FileNotFoundError:
            # Somebody makes room.
            return None
        except Exception as error:
            _log.warning("%s: %s is passed over: %s", self._where, name, summarize_error(error))
            return None
        if sha256 is not None and hashlib.sha256(body).hexdigest() != sha256:
            _log.warning("%s: %s is damaged and passed over: remove it", self._where, name)
            return None
        return body


def text_key(text: str) -> bytes:
    """What a text is known by: 16 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def cache_space(encoder: Encoder, kind: Kind, digest: str) -> str:
    """A name that depends on all that turns a text into its vector: the model's ``model_digest``, how the encoder uses
    it for ``kind``, and the kind of device."""
    config = encoder.config
    settings = {
        "format": FORMAT,
        "model": digest,
        "prefix": config.prefix(kind),
        "max_length": config.max_length(kind),
        "pooling": config.pooling,
        "l2_normalize": config.l2_normalize,
        "dimension": encoder.dimension,
        "device": encoder.device.type,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def model_digest(encoder: Encoder) -> str:
    """sha256 of the weights in their precision, configuration, code and tokenizer, wherever they were loaded from."""
    backbone, tokenizer = encoder.backbone, encoder.tokenizer
    digest = hashlib.sha256()
    about = {name: value for name, value in backbone.config.to_dict().items() if name not in _ORIGIN}
    described: list[object] = [type(backbone).__module__, type(backbone).__qualname__, about, type(tokenizer).__name__]
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # Set by every call, by the lengths that stand in the settings.
        described.append({name: rule for name, rule in rules.items() if name not in ("truncation", "padding")})
    else:
        described.append([tokenizer.get_vocab(), tokenizer.special_tokens_map])
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, weights in sorted(backbone.state_dict().items()):
        # Not used, and made at random where a checkpoint has none.
        if name.startswith("pooler."):
            continue
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}\n".encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
