"""The gradient of a batch's loss, which packed, padded and sharded models compute each in their own way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.data.tokenized import TokenizedData
from components.finetune.gradients.reduction import all_reduce_gradients


class StepLoss(NamedTuple):
    """The loss of one optimizer step on one rank.

    Attributes:
        value: This rank's part of the mean loss of the batch; the sum over all ranks is the mean loss.
        tokens: Tokens of all texts of the batch, each text counted once.
        rows: The examples that ``value`` is of: the whole batch, or the pass whose loss was no finite number.
    """

    value: float
    tokens: int
    rows: Sequence[int]


class NotRepeatableOutOfMemoryError(Exception):
    """Memory ran out where the batch cannot be repeated in smaller passes; the message says what to change."""


class Gradient(ABC):
    """Adds the gradients of batches to the weights that are trained, and encodes with these weights."""

    def __init__(self, encoder: Encoder, config: FinetuneConfig, process_group: ProcessGroup | None = None) -> None:
        self.encoder, self.config = encoder, config
        self._process_group = process_group or ProcessGroup()

    def accumulate(self, data: TokenizedData, rows: Sequence[int], beat: Callable[[], None]) -> StepLoss:
        """Add this rank's part of the gradient of the mean loss of the examples ``rows`` of ``data``.

        The examples are computed in as many passes as memory needs; ``beat`` is called after each. A single process
        stops after a pass whose loss is no finite number; several ranks all make their last pass.

        Raises:
            torch.OutOfMemoryError: On the rank that ran out of memory; DistributedOutOfMemoryError on all ranks.
            NotRepeatableOutOfMemoryError: If ``halve_passes`` would not help.
        """
        batch = data.batch(rows)
        value = 0.0
        for queries in self._split_into_passes(batch):
            part_rows = [rows[query] for query in queries]
            part = batch if part_rows == list(rows) else data.batch(part_rows)
            loss = self.backward_pass(part, 1 / len(rows)).item()
            if not math.isfinite(loss) and not self._process_group.is_distributed:
                return StepLoss(loss, batch.tokens, part_rows)
            value += loss
            beat()
        return StepLoss(value, batch.tokens, rows)

    @abstractmethod
    def _split_into_passes(self, batch: Batch) -> list[Sequence[int]]:
        """Return the positions of the queries that this rank takes part in computing, pass by pass."""

    @abstractmethod
    def backward_pass(self, batch: Batch, scale: float) -> Tensor:
        """Add the gradient of ``scale`` times the sum of the batch's losses; return this rank's part of it, a scalar.

        Ranks that share a batch each add and return their part; the sum over them is the whole.
        """

    @abstractmethod
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Return the vectors of token ids as training computes them: float32 [len(ids), d], without gradient.

        Ranks share the work and all get the whole.
        """

    @abstractmethod
    def halve_passes(self) -> str | None:
        """Need about half the memory from now on; return what a pass may hold now, None if it is the least already."""

    def all_reduce(self) -> None:
        """Replace the gradients by their sums over all ranks: once for every optimizer step."""
        all_reduce_gradients(self.encoder.parameters(), self._process_group, self.config)

    @abstractmethod
    def refresh_weights(self) -> None:
        """Take over the trained weights; call it after every optimizer step or other change of the weights."""

    def discard(self) -> None:
        """Drop the gradients added so far, and what a failed pass left behind."""
        self.encoder.zero_grad(set_to_none=True)


def split_into_chunks(positions: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split ``positions`` into chunks of ``size``, the last one perhaps smaller."""
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def compute_in_batch_loss(
    batch: Batch,
    vectors: Tensor,
    rows: Sequence[int],
    process_group: ProcessGroup,
    config: FinetuneConfig,
    scale: float,
) -> Tensor:
    """Return ``scale`` times the sum of the batch's in-batch losses, whose vectors lie on several ranks; a scalar.

    Every rank computes the same loss; its backward pass gives each rank what its own vectors contribute.

    Args:
        batch: The batch that all ranks share.
        vectors: This rank's vectors, [len(rows), d].
        rows: Which texts of the batch these are: queries are counted first, then passages.
        process_group: The ranks.
        config: The settings of the loss.
        scale: Factor of the loss.
    """
    first = len(batch.queries)
    gathered = process_group.gather_rows(vectors, rows, first + len(batch.passages))
    return batch.compute_losses(gathered[:first], gathered[first:], config).sum() * scale


def restore_order(vectors: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Return ``vectors`` [n, d], which lie group after group, in the order of the rows that ``groups`` names."""
    position = torch.empty(len(vectors), dtype=torch.long)
    position[torch.tensor([row for group in groups for row in group], dtype=torch.long)] = torch.arange(len(vectors))
    return vectors[position.to(vectors.device)]
