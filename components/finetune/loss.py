"""Contrastive losses over vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


def contrastive_loss(queries: torch.Tensor, passages: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the recipe's loss of each query, float32 [n]: each query against its own passages only.

    ``queries``: float32 [n, d]; ``passages``: float32 [n, p, d], the positive first. A negative that
    repeats, as where there are too few, counts as often as it stands there.
    """
    scores = torch.einsum("nd,npd->np", queries, passages) / temperature
    return functional.cross_entropy(
        scores, torch.zeros(len(queries), dtype=torch.long, device=scores.device), reduction="none"
    )


def in_batch_loss(
    queries: torch.Tensor, passages: torch.Tensor, positives: torch.Tensor, known: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Return InfoNCE with in-batch negatives, float32 [n]: each query against every distinct passage of the batch.

    van den Oord et al. 2018, arXiv 1807.03748.

    Args:
        queries: float32 [n, d].
        passages: float32 [m, d], each distinct passage once.
        positives: int64 [n], the row of each query's positive.
        known: bool [n, m], passages known to answer the query as well, which are no negatives.
        temperature: Scores are divided by it.
    """
    scores = queries @ passages.T / temperature
    other = known.clone()
    other[torch.arange(len(queries), device=other.device), positives] = False
    return functional.cross_entropy(scores.masked_fill(other, -torch.inf), positives, reduction="none")


def matryoshka_loss(
    compute_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    queries: torch.Tensor,
    passages: torch.Tensor,
    dimensions: Sequence[int],
    *,
    normalize: bool,
) -> torch.Tensor:
    """Return the mean of ``compute_loss(queries, passages)`` over whole and truncated vectors, float32 [n].

    Truncated vectors are scaled to length 1 again where ``normalize``. (Kusupati et al. 2022, arXiv 2205.13147.)

    Args:
        compute_loss: Maps queries and passages to the loss of each query, float32 [n].
        queries: float32 [n, d].
        passages: float32 [..., d].
        dimensions: The lengths of truncated vectors.
        normalize: Scale truncated vectors to length 1.
    """

    def truncate(vectors: torch.Tensor, size: int) -> torch.Tensor:
        short = vectors[..., :size]
        return functional.normalize(short, dim=-1) if normalize else short

    losses = [compute_loss(queries, passages)]
    losses += [compute_loss(truncate(queries, size), truncate(passages, size)) for size in dimensions]
    return torch.stack(losses).mean(dim=0)
