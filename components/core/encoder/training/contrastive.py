"""Backward pass of a contrastive loss over a batch of any size; a repeated text is encoded once if that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.distributed.transfer import to_device
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.packed.packing import pack
from components.core.encoder.training.schedule import Phase, one_phase, schedule, shares


def backward(
    packed: PackedEncoder,
    ids: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    loss_of: Callable[[Tensor], Tensor],
    *,
    capacity: int,
    together: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Add the gradients of the batch's loss to those of the weights; returns the loss, a float32 scalar.

    ``ids``: token ids of the batch's texts; ``groups``: the rows that belong together, for instance a query, its
    positive and its negatives, all groups of one size. ``loss_of`` maps the vectors of some groups, float32 [groups,
    size, dimension], to the sum of their losses; with ``together`` it always gets all groups (in-batch negatives).
    ``capacity``: tokens whose activations fit in memory. A text used several times counts in the loss and its gradient
    as often as it is used, however often it is encoded.

    The ranks of ``process_group`` share the work; all call this with the same batch. Each adds its part of the
    gradients and returns its part of the loss: the sum over them is the whole. Raises torch.OutOfMemoryError on the
    rank whose memory does not suffice for bins of its own, DistributedOutOfMemoryError as ``vectors_of`` does.
    """
    process_group = process_group or ProcessGroup()
    lengths = [len(text) for text in ids]
    if together:
        phases = [one_phase(groups, lengths, capacity=capacity, layers=packed.layers, num_ranks=process_group.size)]
    else:
        phases = schedule(groups, lengths, capacity=capacity, layers=packed.layers, num_ranks=process_group.size)
    if len(phases) == 1:
        return _backward(packed, ids, groups, loss_of, phases[0], process_group) / process_group.size
    # Each rank computes bins of its own, and their losses: it needs nothing of the others.
    own = shares([phase.rows for phase in phases], lengths, process_group.size)[process_group.rank]
    losses = [_backward(packed, ids, groups, loss_of, phases[place], ProcessGroup()) for place in own]
    return torch.stack(losses).sum() if losses else torch.zeros((), device=packed.device)


def _backward(
    packed: PackedEncoder,
    ids: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    loss_of: Callable[[Tensor], Tensor],
    phase: Phase,
    process_group: ProcessGroup,
) -> Tensor:
    """Add the gradients of the loss of ``phase``, whose bins all ranks share; return that loss, on all of them."""
    vectors = vectors_of(packed, ids, phase, process_group)
    loss = loss_of(vectors[to_device([groups[group] for group in phase.groups], packed.device)])
    # A rank without a bin has nothing to add.
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def vectors_of(
    packed: PackedEncoder, ids: Sequence[Sequence[int]], phase: Phase, process_group: ProcessGroup
) -> Tensor:
    """Vectors of the texts of ``phase`` at their rows: float32 [len(ids), dimension], zeros elsewhere.

    ``process_group`` share the bins, and all get all vectors; each keeps the activations of its own. Raises
    DistributedOutOfMemoryError on all ranks when the memory of one of them does not suffice.
    """
    lengths = [len(text) for text in ids]
    own = [phase.bins[place] for place in shares(phase.bins, lengths, process_group.size)[process_group.rank]]

    def encoded() -> Tensor:
        parts = [packed(pack(ids, rows, packed.device), recompute_layers=phase.recompute_layers) for rows in own]
        return torch.cat(parts) if parts else torch.zeros(0, packed.dimension, device=packed.device)

    return process_group.gather_rows(process_group.run_on_all(encoded), [row for rows in own for row in rows], len(ids))
