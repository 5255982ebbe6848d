"""The gradient of a batch's loss, which every model and machine computes in a way of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch


class Gradient(Protocol):
    """Adds gradients to the weights that are trained, and encodes with them."""

    together: bool
    """Whether all ranks take the same batches and share the work of each; else every rank takes queries of its own."""
    queries: int | None
    """Queries that ``add`` takes at a time; None for any number."""
    in_step: bool
    """Whether all ranks must call ``add`` equally often."""

    def add(self, batch: Batch, share: float) -> Tensor:
        """Add the gradient of ``share`` times the sum of the batch's losses; return that sum, a scalar.

        Where ranks work ``together`` each adds and returns its part; the sum over them is the whole. A batch may be
        empty where ``in_step``.
        """
        ...

    def add_up(self) -> None:
        """Sum the gradients of all ranks: once for every optimizer step."""

    def weights_changed(self) -> None:
        """Call after each optimizer step or other change of the weights."""

    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Vectors of texts given as token ids, as training computes them: float32 [len(ids), d], no gradient.

        Ranks share the work and all get the whole.
        """
        ...

    def discard(self) -> None:
        """Forget the gradients added so far, and what a failed ``add`` left behind."""

    def halve(self) -> str | None:
        """Need about half the memory from now on; return what one pass may hold now, None when it is the least."""
        ...


def loss_over_all(
    batch: Batch, own: Tensor, rows: Sequence[int], process_group: ProcessGroup, config: FinetuneConfig, share: float
) -> Tensor:
    """``share`` of the batch's in-batch loss, of vectors that lie on several ranks; ``own`` are those of ``rows``.

    ``rows`` count the batch's queries, then its passages. Every rank computes the same loss; its backward pass gives
    each rank what its own vectors contribute.
    """
    first = len(batch.queries)
    every = process_group.gather_rows(own, rows, first + len(batch.passages))
    return batch.losses(every[:first], every[first:], config).sum() * share


def in_order(vectors: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """``vectors``, which lie group after group, in the order of the rows that ``groups`` names."""
    place = torch.empty(len(vectors), dtype=torch.long)
    place[torch.tensor([row for group in groups for row in group], dtype=torch.long)] = torch.arange(len(vectors))
    return vectors[place.to(vectors.device)]
