"""What is compared: each system turns test sets into search results."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from components.core.beir_data import BeirData
from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder
from components.core.endpoint import Endpoint
from components.core.errors import ActionNeeded, InputError
from components.core.progress import Progress
from components.core.search import top_k
from components.eval.bm25 import bm25_top_k
from components.eval.component import EvalConfig
from components.eval.metrics import Run, search_depth, to_run

BeirSets = Mapping[str, BeirData]
# (texts, query or passage, what to call the work) -> float32 [texts, dimension]
Embed = Callable[[Sequence[str], Kind, str], np.ndarray]


@dataclass(frozen=True)
class Cost:
    """What an index of the model's vectors costs on this machine.

    ``milliseconds_per_query``: encoding and exact search, all queries at once, so latency of one query is higher.
    """

    dimension: int
    passages_per_second: float
    milliseconds_per_query: float

    @property
    def bytes_per_passage(self) -> int:
        """As float32."""
        return 4 * self.dimension


@dataclass(frozen=True)
class Search:
    """What a system found: ``runs`` by test set; ``shortened`` by dimension of the cut vectors and test set."""

    runs: dict[str, Run]
    shortened: dict[int, dict[str, Run]] = field(default_factory=dict)
    cost: Cost | None = None


def search_with_bm25(sets: BeirSets, k: int) -> Search:
    """The ``k`` best of every query, for each test set."""
    return Search(
        {
            name: to_run(*bm25_top_k([*data.queries.values()], [*data.corpus.values()], search_depth(data, k)), data, k)
            for name, data in sets.items()
        }
    )


def search_with_encoder(
    load: Callable[[], Encoder],
    label: str,
    sets: BeirSets,
    k: int,
    *,
    batch_tokens: int,
    dimensions: Sequence[int] = (),
) -> Search:
    """As ``search_with_bm25``, with the vectors of the encoder that ``load`` returns; only this one is in memory.

    Raises InputError when the accelerator's memory is too small for ``batch_tokens``, and when the vectors are
    shorter than one of ``dimensions``.
    """
    gc.collect()
    torch.cuda.empty_cache()
    encoder = load()
    if dimensions and max(dimensions) > encoder.dimension:
        raise InputError(
            f"eval_dimensions has {max(dimensions)} and the vectors of the {label} model have {encoder.dimension}: "
            f"leave it out"
        )

    def embed(texts: Sequence[str], kind: Kind, what: str) -> np.ndarray:
        return encoder.encode(texts, kind, batch_tokens=batch_tokens, what=what)

    try:
        return _search(embed, label, sets, k, dimensions)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{label} model: {batch_tokens} tokens at once do not fit into the accelerator's memory: "
            f"lower encode_batch_tokens"
        ) from None


def check_endpoint(config: EvalConfig) -> None:
    """Raise ActionNeeded unless the endpoint is ready, InputError when it does not serve ``nim_model``."""
    with _endpoint(config) as endpoint:
        if not endpoint.ready():
            raise ActionNeeded(
                f"{config.nim_url} is not ready: start the service, correct nim_url, or set eval_nim to false"
            )
        served = endpoint.models()
        if config.nim_model not in served:
            raise InputError(f"{config.nim_url} serves {', '.join(served)}, not {config.nim_model}: change nim_model")


def search_with_endpoint(config: EvalConfig, sets: BeirSets, k: int) -> Search:
    """As ``search_with_bm25``, with the vectors of the served model; prefixes are the server's business."""
    with _endpoint(config) as endpoint:

        def embed(texts: Sequence[str], kind: Kind, what: str) -> np.ndarray:
            size, vectors = config.nim_batch_size, []
            with Progress(what, total=len(texts), unit="texts") as progress:
                for start in range(0, len(texts), size):
                    dimension = vectors[0].shape[1] if vectors else None
                    batch = texts[start : start + size]
                    vectors.append(endpoint.embed(batch, kind, batch_size=size, truncate="END", dimension=dimension))
                    progress.add(len(batch))
            return np.concatenate(vectors)

        return _search(embed, "nim", sets, k)


def _endpoint(config: EvalConfig) -> Endpoint:
    key = os.environ.get("NIM_API_KEY")
    return Endpoint(config.nim_url, config.nim_model, timeout=config.nim_timeout, api_key=key)


def _search(embed: Embed, label: str, sets: BeirSets, k: int, dimensions: Sequence[int] = ()) -> Search:
    """Search each set; a passage that stands in several of them is embedded once."""
    texts = list(dict.fromkeys(text for data in sets.values() for text in data.corpus.values()))
    row = {text: number for number, text in enumerate(texts)}
    started = time.perf_counter()
    vectors = _finite(embed(texts, "passage", f"{label}: passages"), label)
    encoded = time.perf_counter()
    runs: dict[str, Run] = {}
    shortened: dict[int, dict[str, Run]] = {dimension: {} for dimension in dimensions}
    searching = 0.0
    for name, data in sets.items():
        before = time.perf_counter()
        queries = _finite(embed([*data.queries.values()], "query", f"{label}: {name} queries"), label)
        passages = vectors[[row[text] for text in data.corpus.values()]]
        runs[name] = _best(queries, passages, data, k, f"{label}: {name} search")
        searching += time.perf_counter() - before
        for dimension in dimensions:
            short = _cut(queries, dimension), _cut(passages, dimension)
            what = f"{label}: {name} search, {dimension} dimensions"
            shortened[dimension][name] = _best(*short, data, k, what)
    asked = sum(len(data.queries) for data in sets.values())
    cost = Cost(vectors.shape[1], round(len(texts) / (encoded - started), 1), round(1000 * searching / asked, 3))
    return Search(runs, shortened, cost)


def _best(queries: np.ndarray, passages: np.ndarray, data: BeirData, k: int, what: str) -> Run:
    found = top_k(queries, passages, search_depth(data, k), what=what)
    return to_run(found.scores, found.positions, data, k)


def _cut(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """The first ``dimension`` numbers of each vector, at length 1 (Kusupati et al. 2022, arXiv 2205.13147)."""
    short = vectors[:, :dimension]
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _finite(vectors: np.ndarray, label: str) -> np.ndarray:
    broken = int((~np.isfinite(vectors)).any(axis=1).sum())
    if broken:
        raise InputError(
            f"{label} model: {broken} of {len(vectors)} vectors hold NaN or infinity: the model is broken; "
            f"train it again, with a lower learning rate if its loss was no number"
        )
    return vectors
