"""What is compared: each system turns test sets into search results."""

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
from components.eval.component import EvalConfig
from components.eval.metrics import Run, search_depth, to_run

BeirSets = Mapping[str, BeirData]
Embed = Callable[[Sequence[TextGroup]], Sequence[EncodedTexts]]
# Texts encoded, from which on a rate means something.
_ENOUGH = 100


@dataclass(frozen=True)
class Cost:
    """What an index of the model's vectors costs on this machine.

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
class Search:
    """What a system found: ``runs`` by test set; ``shortened`` by dimension of the cut vectors and test set.

    ``repeated``: requests to an endpoint that had to be repeated, and those of them for a vector that was none.
    """

    runs: dict[str, Run]
    shortened: dict[int, dict[str, Run]] = field(default_factory=dict)
    cost: Cost | None = None
    repeated: dict[str, int] = field(default_factory=dict)


def search_with_bm25(sets: BeirSets, k: int) -> Search:
    """The ``k`` best of every query, for each test set."""
    return Search(
        {
            name: to_run(*bm25_top_k([*data.queries.values()], [*data.corpus.values()], search_depth(data, k)), data, k)
            for name, data in sets.items()
        }
    )


def search_with_encoder(
    model: ModelSource, label: str, sets: BeirSets, k: int, options: EncodeOptions, *, dimensions: Sequence[int] = ()
) -> Search:
    """As ``search_with_bm25``, with the vectors of ``model``; only this one is in memory.

    Raises InputError as ``encode_texts`` does, and when the vectors are shorter than one of ``dimensions``.
    """
    options = replace(options, min_dimension=max(dimensions, default=1))
    return _search(lambda groups: encode_texts(model, groups, options), label, sets, k, dimensions)


def check_endpoint(config: EvalConfig) -> None:
    """Raise ActionNeeded unless the endpoint is ready, InputError when it does not serve ``nim_model``."""
    with _endpoint(config) as endpoint:
        if not endpoint.is_ready():
            raise ActionNeeded(
                f"{config.nim_url} is not ready: start the service, correct nim_url, or set eval_nim to false"
            )
        served = endpoint.list_models()
        if config.nim_model not in served:
            raise InputError(f"{config.nim_url} serves {', '.join(served)}, not {config.nim_model}: change nim_model")


def search_with_endpoint(config: EvalConfig, sets: BeirSets, k: int) -> Search:
    """As ``search_with_bm25``, with the vectors of the served model; prefixes are the server's business."""
    with _endpoint(config) as endpoint:
        found = _search(lambda groups: [_served(config, endpoint, group) for group in groups], "nim", sets, k)
        return replace(found, repeated={"requests": endpoint.retries, "invalid_vectors": endpoint.invalid})


def _served(config: EvalConfig, endpoint: EmbeddingClient, group: TextGroup) -> EncodedTexts:
    size, vectors = config.nim_batch_size, []
    started = time.perf_counter()
    with Progress(group.label, total=len(group.texts), unit="texts") as progress:
        for start in range(0, len(group.texts), size):
            dimension = vectors[0].shape[1] if vectors else None
            batch = group.texts[start : start + size]
            vectors.append(endpoint.embed(batch, group.kind, batch_size=size, truncate="END", dimension=dimension))
            progress.add(len(batch))
    return EncodedTexts(np.concatenate(vectors), len(group.texts), time.perf_counter() - started)


def _endpoint(config: EvalConfig) -> EmbeddingClient:
    key = os.environ.get("NIM_API_KEY")
    return EmbeddingClient(
        config.nim_url,
        config.nim_model,
        timeout=config.nim_timeout,
        api_key=key,
        api=config.embedding_api_backend,
        invalid_retries=config.nim_invalid_embedding_retries,
    )


def _search(embed: Embed, label: str, sets: BeirSets, k: int, dimensions: Sequence[int] = ()) -> Search:
    """Search each set; a passage that stands in several of them is embedded once."""
    texts = list(dict.fromkeys(text for data in sets.values() for text in data.corpus.values()))
    row = {text: number for number, text in enumerate(texts)}
    groups = [TextGroup(texts, "passage", f"{label}: passages")]
    groups += [TextGroup([*data.queries.values()], "query", f"{label}: {name} queries") for name, data in sets.items()]
    passages, *asked = (replace(one, vectors=_finite(one.vectors, label)) for one in embed(groups))
    runs: dict[str, Run] = {}
    shortened: dict[int, dict[str, Run]] = {dimension: {} for dimension in dimensions}
    searching = 0.0
    for (name, data), queries in zip(sets.items(), asked, strict=True):
        rows = [row[text] for text in data.corpus.values()]
        searched = passages.vectors if rows == list(range(len(texts))) else passages.vectors[rows]
        before = time.perf_counter()
        runs[name] = _best(queries.vectors, searched, data, k, f"{label}: {name} search")
        searching += time.perf_counter() - before
        for dimension in dimensions:
            short = _cut(queries.vectors, dimension), _cut(searched, dimension)
            what = f"{label}: {name} search, {dimension} dimensions"
            shortened[dimension][name] = _best(*short, data, k, what)
    return Search(runs, shortened, _cost(passages, asked, searching))


def _cost(passages: EncodedTexts, queries: Sequence[EncodedTexts], searching: float) -> Cost:
    asked, encoded = sum(len(one.vectors) for one in queries), sum(one.num_encoded for one in queries)
    seconds = sum(one.seconds for one in queries)
    return Cost(
        passages.vectors.shape[1],
        round(passages.num_encoded / passages.seconds, 1) if _measured(passages) else None,
        round(1000 * (searching / asked + seconds / encoded), 3) if all(map(_measured, queries)) else None,
    )


def _measured(found: EncodedTexts) -> bool:
    """Whether enough texts were encoded, and not found in the cache, to tell how long one takes."""
    return found.num_encoded >= min(len(found.vectors), _ENOUGH)


def _best(queries: np.ndarray, passages: np.ndarray, data: BeirData, k: int, what: str) -> Run:
    found = top_k(queries, passages, search_depth(data, k), label=what)
    return to_run(found.scores, found.positions, data, k)


def _cut(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """The first ``dimension`` numbers of each vector, at length 1 (Kusupati et al. 2022, arXiv 2205.13147)."""
    short = vectors[:, :dimension]
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _finite(vectors: np.ndarray, label: str) -> np.ndarray:
    # A sum is finite when all its terms are.
    broken = int((~np.isfinite(vectors.sum(axis=1))).sum())
    if broken:
        raise InputError(
            f"{label} model: {broken} of {len(vectors)} vectors hold NaN or infinity: the model is broken; "
            f"train it again, with a lower learning rate if its loss was no number"
        )
    return vectors
