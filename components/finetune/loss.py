"""Contrastive losses over vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional


def contrastive_loss(queries: torch.Tensor, passages: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """The recipe's loss: each query against its own passages only.

    ``queries`` [n, d]; ``passages`` [n, p, d], the positive first. Returns the loss of each query, [n]. A negative that
    repeats, as where there are too few, counts as often as it stands there.
    """
    scores = torch.einsum("nd,npd->np", queries, passages) / temperature
    return functional.cross_entropy(
        scores, torch.zeros(len(queries), dtype=torch.long, device=scores.device), reduction="none"
    )


def in_batch_loss(
    queries: torch.Tensor, passages: torch.Tensor, positives: torch.Tensor, known: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """InfoNCE with in-batch negatives: each query against every distinct passage of the batch.

    ``queries`` [n, d]; ``passages`` [m, d], each distinct passage once; ``positives`` int64 [n]: row of each query's
    positive; ``known`` bool [n, m]: passages known to answer the query as well, which are no negatives. Returns the
    loss of each query, [n]. (van den Oord et al. 2018, arXiv 1807.03748.)
    """
    scores = queries @ passages.T / temperature
    other = known.clone()
    other[torch.arange(len(queries), device=other.device), positives] = False
    return functional.cross_entropy(scores.masked_fill(other, -torch.inf), positives, reduction="none")


def matryoshka(
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    queries: torch.Tensor,
    passages: torch.Tensor,
    dimensions: Sequence[int],
    *,
    normalize: bool,
) -> torch.Tensor:
    """Mean of ``loss_of(queries, passages)`` over the whole vectors and those cut to each of ``dimensions``.

    Cut vectors are scaled to length 1 again where ``normalize``. (Kusupati et al. 2022, arXiv 2205.13147.)
    """

    def cut(vectors: torch.Tensor, size: int) -> torch.Tensor:
        short = vectors[..., :size]
        return functional.normalize(short, dim=-1) if normalize else short

    losses = [loss_of(queries, passages)]
    losses += [loss_of(cut(queries, size), cut(passages, size)) for size in dimensions]
    return torch.stack(losses).mean(dim=0)
