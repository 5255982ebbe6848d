"""A batch of token ids and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.distributed.transfer import to_device
from components.finetune.component import FinetuneConfig
from components.finetune.loss import contrastive_loss, in_batch_loss, matryoshka_loss


@dataclass(frozen=True)
class Batch:
    """Token ids of queries and of their distinct passages.

    ``slots``: for each query the rows of its passages, the positive first. ``known``: for each query the rows of all
    passages that are no negatives of it, among them those known to answer it; in-batch negatives leave them out.
    """

    queries: Sequence[list[int]]
    passages: Sequence[list[int]]
    slots: Sequence[list[int]]
    known: Sequence[set[int]]

    @property
    def texts(self) -> list[list[int]]:
        """Return the token ids of all texts: the queries, then the passages."""
        return [*self.queries, *self.passages]

    @property
    def groups(self) -> list[list[int]]:
        """Return for each query the rows of ``texts`` that its own loss needs: itself and its passages."""
        first = len(self.queries)
        return [[row, *(first + slot for slot in slots)] for row, slots in enumerate(self.slots)]

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all texts, each counted once."""
        return sum(map(len, self.queries)) + sum(map(len, self.passages))

    def compute_losses(self, queries: Tensor, passages: Tensor, config: FinetuneConfig) -> Tensor:
        """Return the loss of each query, [n], of vectors ``queries`` [n, d] and ``passages`` [m, d]."""
        slots = to_device(self.slots, queries.device)
        if not config.in_batch_negatives:
            return compute_explicit_losses(queries, passages[slots], config)
        known = torch.zeros(len(queries), len(passages), dtype=torch.bool)
        for row, answers in enumerate(self.known):
            known[row, list(answers)] = True
        known = to_device(known, queries.device)

        def compute_loss(queries: Tensor, passages: Tensor) -> Tensor:
            return in_batch_loss(queries, passages, slots[:, 0], known, temperature=_temperature(config))

        return matryoshka_loss(
            compute_loss, queries, passages, config.matryoshka_dimensions, normalize=config.l2_normalize
        )


def compute_explicit_losses(queries: Tensor, passages: Tensor, config: FinetuneConfig) -> Tensor:
    """Return the loss of each query among its own passages, [n], of ``queries`` [n, d], ``passages`` [n, p, d]."""

    def compute_loss(queries: Tensor, passages: Tensor) -> Tensor:
        return contrastive_loss(queries, passages, temperature=_temperature(config))

    return matryoshka_loss(compute_loss, queries, passages, config.matryoshka_dimensions, normalize=config.l2_normalize)


def _temperature(config: FinetuneConfig) -> float:
    return config.temperature if config.l2_normalize else 1.0
