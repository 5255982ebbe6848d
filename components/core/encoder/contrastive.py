"""Backward pass of a contrastive loss over a batch of any size; a repeated text is encoded once if that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.core.encoder.packed import PackedEncoder
from components.core.encoder.packing import pack
from components.core.encoder.schedule import schedule


def backward(
    packed: PackedEncoder,
    ids: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    loss_of: Callable[[Tensor], Tensor],
    *,
    capacity: int,
    together: bool = False,
) -> Tensor:
    """Add the gradients of the batch's loss to those of the weights; returns the loss, a float32 scalar.

    ``ids``: token ids of the batch's texts; ``groups``: the rows that belong together, for instance a query, its
    positive and its negatives, all groups of one size. ``loss_of`` maps the vectors of some groups, float32 [groups,
    size, dimension], to the sum of their losses; with ``together`` it always gets all groups (in-batch negatives).
    ``capacity``: tokens whose activations fit in memory. A text used several times counts in the loss and its gradient
    as often as it is used, however often it is encoded.
    """
    layers = packed.layers
    total = torch.zeros((), device=packed.device)
    for phase in schedule(groups, [len(text) for text in ids], capacity=capacity, layers=layers, together=together):
        parts = [packed(pack(ids, rows, packed.device), recompute_layers=phase.recompute_layers) for rows in phase.bins]
        place = {row: number for number, row in enumerate(row for rows in phase.bins for row in rows)}
        wanted = torch.tensor([[place[row] for row in groups[group]] for group in phase.groups])
        loss = loss_of(torch.cat(parts)[wanted.to(packed.device)])
        loss.backward()
        total += loss.detach()
    return total
