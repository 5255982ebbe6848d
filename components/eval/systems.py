"""The systems that are compared: each turns test sets into search results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from components.core.errors import ActionNeeded, InputError
from components.core.progress import Progress
from components.core.retrieval.beir_data import BeirData
from components.core.retrieval.encode_texts import EncodedTexts, EncodeOptions, ModelSource, TextGroup, encode_texts
from components.core.retrieval.search import top_k
from components.core.serving.client import EmbeddingClient
from components.eval.bm25 import bm25_top_k
from components.eval.component import NimSettings
from components.eval.metrics import Rankings, compute_search_depth, to_rankings

BeirSets = Mapping[str, BeirData]
EncodeGroups = Callable[[Sequence[TextGroup]], Sequence[EncodedTexts]]
# Texts encoded, from which on a rate means something.
_ENOUGH = 100


@dataclass(frozen=True)
class IndexCost:
    """The cost of an index of the model's vectors on this machine.

    ``milliseconds_per_query``: encoding and exact search, all queries at once, so latency of one query is higher.
    None where the vectors came from the cache.
    """

    dimension: int
    passages_per_second: float | None
    milliseconds_per_query: float | None

    @property
    def bytes_per_passage(self) -> int:
        """As float32."""
        return 4 * self.dimension


@dataclass(frozen=True)
class SystemResult:
    """What a system found: ``rankings`` by test set; ``shortened`` by dimension of the cut vectors and test set.

    ``repeated`` counts the requests to an endpoint that had to be repeated, and those of them for an invalid vector.
    """

    rankings: dict[str, Rankings]
    shortened: dict[int, dict[str, Rankings]] = field(default_factory=dict)
    cost: IndexCost | None = None
    repeated: dict[str, int] = field(default_factory=dict)


def search_with_bm25(sets: BeirSets, k: int) -> SystemResult:
    """Find the ``k`` best of every query, for each test set."""
    rankings = {}
    for name, data in sets.items():
        depth = compute_search_depth(data, k)
        scores, positions = bm25_top_k([*data.queries.values()], [*data.corpus.values()], depth)
        rankings[name] = to_rankings(scores, positions, data, k)
    return SystemResult(rankings)


def search_with_encoder(
    model: ModelSource, label: str, sets: BeirSets, k: int, options: EncodeOptions, *, dimensions: Sequence[int] = ()
) -> SystemResult:
    """Do the same as ``search_with_bm25`` with the vectors of ``model``; only this model is in memory.

    Raises InputError as ``encode_texts`` does, and when the vectors are shorter than one of ``dimensions``.
    """
    options = replace(options, min_dimension=max(dimensions, default=1))
    return _search_with_vectors(lambda groups: encode_texts(model, groups, options), label, sets, k, dimensions)


def check_endpoint(settings: NimSettings) -> None:
    """Raise ActionNeeded unless the endpoint is ready, InputError when it does not serve ``nim_model``."""
    with _open_endpoint(settings) as endpoint:
        if not endpoint.is_ready():
            raise ActionNeeded(
                f"{settings.nim_url} is not ready: start the service, correct nim_url, or set eval_nim to false"
            )
        served = endpoint.list_models()
        if settings.nim_model not in served:
            raise InputError(
                f"{settings.nim_url} serves {', '.join(served)}, not {settings.nim_model}: change nim_model"
            )


def search_with_endpoint(settings: NimSettings, sets: BeirSets, k: int) -> SystemResult:
    """Do the same as ``search_with_bm25`` with the vectors of the served model; the server adds the prefixes."""
    with _open_endpoint(settings) as endpoint:
        result = _search_with_vectors(
            lambda groups: [_encode_with_endpoint(settings, endpoint, group) for group in groups], "nim", sets, k
        )
        return replace(result, repeated={"requests": endpoint.retries, "invalid_vectors": endpoint.invalid})


def _encode_with_endpoint(settings: NimSettings, endpoint: EmbeddingClient, group: TextGroup) -> EncodedTexts:
    size = settings.nim_batch_size
    vectors: list[np.ndarray] = []
    started = time.perf_counter()
    with Progress(group.label, total=len(group.texts), unit="texts") as progress:
        for start in range(0, len(group.texts), size):
            dimension = vectors[0].shape[1] if vectors else None
            batch = group.texts[start : start + size]
            vectors.append(endpoint.embed(batch, group.kind, batch_size=size, truncate="END", dimension=dimension))
            progress.add(len(batch))
    return EncodedTexts(np.concatenate(vectors), len(group.texts), time.perf_counter() - started)


def _open_endpoint(settings: NimSettings) -> EmbeddingClient:
    key = os.environ.get("NIM_API_KEY")
    return EmbeddingClient(
        settings.nim_url,
        settings.nim_model,
        timeout=settings.nim_timeout,
        api_key=key,
        api=settings.embedding_api_backend,
        invalid_retries=settings.nim_invalid_embedding_retries,
    )


def _search_with_vectors(
    encode: EncodeGroups, label: str, sets: BeirSets, k: int, dimensions: Sequence[int] = ()
) -> SystemResult:
    """Search each set; a passage that is in several of them is encoded once."""
    unique = list(dict.fromkeys(text for data in sets.values() for text in data.corpus.values()))
    row = {text: number for number, text in enumerate(unique)}
    groups = [TextGroup(unique, "passage", f"{label}: passages")]
    groups += [TextGroup([*data.queries.values()], "query", f"{label}: {name} queries") for name, data in sets.items()]
    passages, *asked = (replace(texts, vectors=_check_finite(texts.vectors, label)) for texts in encode(groups))
    rankings: dict[str, Rankings] = {}
    shortened: dict[int, dict[str, Rankings]] = {dimension: {} for dimension in dimensions}
    searching = 0.0
    for (name, data), queries in zip(sets.items(), asked, strict=True):
        rows = [row[text] for text in data.corpus.values()]
        searched = passages.vectors if rows == list(range(len(unique))) else passages.vectors[rows]
        before = time.perf_counter()
        rankings[name] = _search_set(queries.vectors, searched, data, k, f"{label}: {name} search")
        searching += time.perf_counter() - before
        for dimension in dimensions:
            short = _truncate(queries.vectors, dimension), _truncate(searched, dimension)
            short_label = f"{label}: {name} search, {dimension} dimensions"
            shortened[dimension][name] = _search_set(*short, data, k, short_label)
    return SystemResult(rankings, shortened, _compute_cost(passages, asked, searching))


def _compute_cost(passages: EncodedTexts, queries: Sequence[EncodedTexts], searching: float) -> IndexCost:
    asked, encoded = sum(len(texts.vectors) for texts in queries), sum(texts.num_encoded for texts in queries)
    seconds = sum(texts.seconds for texts in queries)
    return IndexCost(
        passages.vectors.shape[1],
        round(passages.num_encoded / passages.seconds, 1) if _is_measured(passages) else None,
        round(1000 * (searching / asked + seconds / encoded), 3) if all(map(_is_measured, queries)) else None,
    )


def _is_measured(texts: EncodedTexts) -> bool:
    """Return whether enough texts were encoded, and not taken from the cache, to tell how long one takes."""
    return texts.num_encoded >= min(len(texts.vectors), _ENOUGH)


def _search_set(queries: np.ndarray, passages: np.ndarray, data: BeirData, k: int, label: str) -> Rankings:
    result = top_k(queries, passages, compute_search_depth(data, k), label=label)
    return to_rankings(result.scores, result.positions, data, k)


def _truncate(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """Return the first ``dimension`` numbers of each vector, at length 1 (Kusupati et al. 2022, arXiv 2205.13147)."""
    short = vectors[:, :dimension]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    scaled: np.ndarray = short / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _check_finite(vectors: np.ndarray, label: str) -> np.ndarray:
    # A sum is finite when all its terms are.
    broken = int((~np.isfinite(vectors.sum(axis=1))).sum())
    if broken:
        raise InputError(
            f"{label} model: {broken} of {len(vectors)} vectors hold NaN or infinity: the model is broken; "
            f"train it again, with a lower learning rate if its loss was no number"
        )
    return vectors
