"""Exact nearest-neighbour search by dot product, in blocks, on the GPU when there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from components.core.encoder.checkpoint import default_device
from components.core.progress import Progress

Vectors = np.ndarray | torch.Tensor
# Sets scores to -inf where a passage may not be found: (scores [queries, passages], first query, first passage).
Exclude = Callable[[torch.Tensor, int, int], None]

# top-k of group maxima, then of those groups alone, reads the scores once; sorting all of them reads them often. It
# pays with so many groups for each of the k.
_GROUP = 64
_WORTH_GROUPING = {"cuda": 4, "cpu": 16}


def top_k(
    queries: Vectors,
    passages: Vectors,
    k: int,
    *,
    exclude: Exclude | None = None,
    query_block: int = 1024,
    passage_block: int = 50_000,
    what: str = "searching",
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best passages of every query, best first.

    ``queries`` [n, d] and ``passages`` [m, d] are arrays in main memory, or tensors, which stay on their device;
    returns scores float32 and positions int64, both [n, min(k, m)]. Products have the vectors' own precision (float32
    or bfloat16), sums and scores are float32. Excluded passages fill the end of a row with score -inf; their positions
    mean nothing. Beside both inputs and the result, memory holds one block of scores.
    """
    device = passages.device if isinstance(passages, torch.Tensor) else default_device()
    asked, searched = as_tensor(queries), as_tensor(passages)
    k = min(k, len(searched))
    scores = torch.full((len(asked), k), -torch.inf, device=device)
    positions = torch.zeros((len(asked), k), dtype=torch.int64, device=device)
    with Progress(what, total=len(asked) * len(searched), unit="scores") as progress:
        # Passages outside: there are more of them, and each comes to the device once.
        for first_passage in range(0, len(searched), passage_block):
            block = searched[first_passage : first_passage + passage_block].to(device)
            for first_query in range(0, len(asked), query_block):
                rows = slice(first_query, first_query + query_block)
                found = dot(asked[rows].to(device), block)
                if exclude is not None:
                    exclude(found, first_query, first_passage)
                best, places = _best(found, k)
                merged = torch.cat([scores[rows], best], dim=1).topk(k, dim=1)
                every = torch.cat([positions[rows], places + first_passage], dim=1)
                scores[rows], positions[rows] = merged.values, every.gather(1, merged.indices)
                progress.add(found.numel())
    return scores.cpu().numpy(), positions.cpu().numpy()


def as_tensor(vectors: Vectors) -> torch.Tensor:
    """The same numbers, not copied."""
    return torch.from_numpy(vectors) if isinstance(vectors, np.ndarray) else vectors


def dot(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """Scores of vectors on one device: float32 [queries, passages]."""
    if queries.dtype == torch.float32:
        return queries @ passages.T
    if queries.is_cuda:
        return torch.mm(queries, passages.T, out_dtype=torch.float32)
    return queries.float() @ passages.float().T


def _best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the ``k`` best of each row, or of all when there are fewer.

    The k best lie in the k groups with the greatest maxima: another group would mean k better ones outside of it.
    """
    rows, columns = scores.shape
    groups = columns // _GROUP
    if groups < _WORTH_GROUPING[scores.device.type] * k:
        best = scores.topk(min(k, columns), dim=1)
        return best.values, best.indices
    grouped = scores[:, : groups * _GROUP].unflatten(1, (groups, _GROUP))
    chosen = grouped.amax(dim=2).topk(k, dim=1).indices
    inside = grouped.gather(1, chosen[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    places = (chosen[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)
    rest = torch.arange(groups * _GROUP, columns, device=scores.device).expand(rows, -1)
    candidates = torch.cat([inside, scores[:, groups * _GROUP :]], dim=1)
    best = candidates.topk(k, dim=1)
    return best.values, torch.cat([places, rest], dim=1).gather(1, best.indices)
