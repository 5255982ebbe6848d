"""Exact nearest-neighbour search by dot product, in blocks, on the GPU when there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from components.core.encoder.checkpoint import default_device
from components.core.progress import Progress

# Sets scores to -inf where a passage may not be found: (scores [queries, passages], first query, first passage).
Exclude = Callable[[torch.Tensor, int, int], None]


def top_k(
    queries: np.ndarray,
    passages: np.ndarray,
    k: int,
    *,
    exclude: Exclude | None = None,
    query_block: int = 1024,
    passage_block: int = 50_000,
    what: str = "searching",
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best passages of every query, best first.

    ``queries`` float32 [n, d] and ``passages`` float32 [m, d]; returns scores float32 and positions int64, both
    [n, min(k, m)]. Excluded passages fill the end of a row with score -inf; their positions mean nothing. Memory is
    bounded by the blocks and by ``passages`` itself.
    """
    device = default_device()
    k = min(k, len(passages))
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    positions = np.zeros((len(queries), k), dtype=np.int64)
    with Progress(what, total=len(queries), unit="queries") as progress:
        for first_query in range(0, len(queries), query_block):
            rows = slice(first_query, first_query + query_block)
            found = _block(torch.from_numpy(queries[rows]).to(device), passages, k, exclude, first_query, passage_block)
            scores[rows], positions[rows] = (part.cpu().numpy() for part in found)
            progress.add(len(queries[rows]))
    return scores, positions


def _block(
    queries: torch.Tensor, passages: np.ndarray, k: int, exclude: Exclude | None, first_query: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``k`` best of all passages for one block of queries."""
    best_scores: list[torch.Tensor] = []
    best_positions: list[torch.Tensor] = []
    for first in range(0, len(passages), size):
        block = torch.from_numpy(passages[first : first + size]).to(queries.device)
        scores = queries @ block.T
        if exclude is not None:
            exclude(scores, first_query, first)
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        best_scores.append(top.values)
        best_positions.append(top.indices + first)
    merged = torch.cat(best_scores, dim=1).topk(k, dim=1)
    return merged.values, torch.cat(best_positions, dim=1).gather(1, merged.indices)
