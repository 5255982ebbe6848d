"""A training batch and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.workload import Shape, passages, queries

TEMPERATURE = 0.02
NEGATIVES = 4


@dataclass(frozen=True)
class Batch:
    """``ids``: token ids of the texts; ``groups``: for each query its row, its positive's, its negatives'."""

    ids: list[list[int]]
    groups: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def repeated(self) -> Batch:
        """The same batch with a copy of a text for every use of it: what those see who do not look."""
        rows = [row for group in self.groups for row in group]
        width = len(self.groups[0])
        return Batch([self.ids[row] for row in rows], [list(range(n, n + width)) for n in range(0, len(rows), width)])


def make_batch(shape: Shape, size: int, *, distinct: bool) -> Batch:
    """``size`` queries; their passages all distinct, or every passage used twice, in random places."""
    slots = size * (1 + NEGATIVES)
    unique = slots if distinct else slots // 2
    ids = queries(shape, size) + passages(shape, unique)
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(3)) % unique
    rows = (order + size).view(size, -1).tolist()
    return Batch(ids, [[query, *rows[query]] for query in range(size)])


def explicit_loss(vectors: Tensor) -> Tensor:
    """Sum over groups [n, 2 + negatives, d] of the cross-entropy of a query's positive among its own passages."""
    logits = torch.einsum("nd,ncd->nc", vectors[:, 0], vectors[:, 1:]) / TEMPERATURE
    return nn.functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64), reduction="sum")


def in_batch_loss(vectors: Tensor) -> Tensor:
    """The same among the passages of all queries."""
    query, candidates = vectors[:, 0], vectors[:, 1:]
    logits = query @ candidates.flatten(0, 1).T / TEMPERATURE
    right = torch.arange(len(query), device=query.device) * candidates.shape[1]
    return nn.functional.cross_entropy(logits, right, reduction="sum")
