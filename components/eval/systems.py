"""What is compared: each system turns test sets into search results."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence

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


def search_with_bm25(sets: BeirSets, k: int) -> dict[str, Run]:
    """The ``k`` best of every query, for each test set."""
    return {
        name: to_run(*bm25_top_k([*data.queries.values()], [*data.corpus.values()], search_depth(data, k)), data, k)
        for name, data in sets.items()
    }


def search_with_encoder(
    load: Callable[[], Encoder], label: str, sets: BeirSets, k: int, *, batch_tokens: int
) -> dict[str, Run]:
    """As ``search_with_bm25``, with the vectors of the encoder that ``load`` returns; only this one is in memory.

    Raises InputError when the accelerator's memory is too small for ``batch_tokens``.
    """
    gc.collect()
    torch.cuda.empty_cache()
    encoder = load()

    def embed(texts: Sequence[str], kind: Kind, what: str) -> np.ndarray:
        return encoder.encode(texts, kind, batch_tokens=batch_tokens, what=what)

    try:
        return _search(embed, label, sets, k)
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


def search_with_endpoint(config: EvalConfig, sets: BeirSets, k: int) -> dict[str, Run]:
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


def _search(embed: Embed, label: str, sets: BeirSets, k: int) -> dict[str, Run]:
    """Search each set; a passage that stands in several of them is embedded once."""
    texts = list(dict.fromkeys(text for data in sets.values() for text in data.corpus.values()))
    row = {text: number for number, text in enumerate(texts)}
    vectors = _finite(embed(texts, "passage", f"{label}: passages"), label)
    runs: dict[str, Run] = {}
    for name, data in sets.items():
        queries = _finite(embed([*data.queries.values()], "query", f"{label}: {name} queries"), label)
        passages = vectors[[row[text] for text in data.corpus.values()]]
        found = top_k(queries, passages, search_depth(data, k), what=f"{label}: {name} search")
        runs[name] = to_run(*found, data, k)
    return runs


def _finite(vectors: np.ndarray, label: str) -> np.ndarray:
    broken = int((~np.isfinite(vectors)).any(axis=1).sum())
    if broken:
        raise InputError(
            f"{label} model: {broken} of {len(vectors)} vectors hold NaN or infinity: the model is broken; "
            f"train it again, with a lower learning rate if its loss was no number"
        )
    return vectors
