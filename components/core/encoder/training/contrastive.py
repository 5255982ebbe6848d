"""Backward pass of a contrastive loss over a batch of any size; a repeated text is encoded once if that is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.distributed.transfer import to_device
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.packed.packing import pack
from components.core.encoder.training.phases import Phase, plan_phases, plan_single_phase, split_across_ranks


def contrastive_backward(
    encoder: PackedEncoder,
    ids: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    compute_loss: Callable[[Tensor], Tensor],
    *,
    capacity: int,
    needs_all_groups: bool = False,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Add the gradients of the batch's loss to those of the weights; return this rank's part of the loss.

    A text used several times counts in the loss and its gradient as often as it is used, however often it is encoded.

    Args:
        encoder: The encoder whose weights get gradients.
        ids: Token ids of the batch's texts.
        groups: Rows of ``ids`` that belong together, for instance a query, its positive and its negatives; all groups
            have one size.
        compute_loss: Maps the vectors of some groups, float32 [groups, size, dimension], to the sum of their losses.
        capacity: Tokens whose activations fit into memory.
        needs_all_groups: ``compute_loss`` must get all groups at once (in-batch negatives).
        process_group: The ranks that share the work; all of them call this with the same batch, and each adds its part
            of the gradients.

    Returns:
        A float32 scalar; the sum over all ranks is the loss of the batch.

    Raises:
        torch.OutOfMemoryError: On the rank that ran out of memory in bins of its own.
        DistributedOutOfMemoryError: On all ranks, as ``encode_phase`` does.
    """
    process_group = process_group or ProcessGroup()
    lengths = [len(text) for text in ids]
    limits = {"capacity": capacity, "layers": encoder.layers, "num_ranks": process_group.size}
    phases = (
        [plan_single_phase(groups, lengths, **limits)] if needs_all_groups else plan_phases(groups, lengths, **limits)
    )
    sharing = process_group
    if len(phases) > 1:
        # Each rank computes phases of its own, and their losses: it needs nothing of the others.
        share = split_across_ranks([phase.rows for phase in phases], lengths, process_group.size)[process_group.rank]
        phases, sharing = [phases[position] for position in share], ProcessGroup()
    losses = []
    for phase in phases:
        vectors = encode_phase(encoder, ids, phase, sharing)
        loss = compute_loss(vectors[to_device([groups[group] for group in phase.groups], encoder.device)])
        # A rank without a bin has nothing to add.
        if loss.requires_grad:
            loss.backward()
        losses.append(loss.detach())
        # The graph holds on to tensors that the next phase needs room for.
        del vectors, loss
    # Ranks that share a phase all compute its loss.
    return (torch.stack(losses).sum() if losses else torch.zeros((), device=encoder.device)) / sharing.size


def encode_phase(
    encoder: PackedEncoder, ids: Sequence[Sequence[int]], phase: Phase, process_group: ProcessGroup
) -> Tensor:
    """Return the vectors of the texts of ``phase`` at their rows: float32 [len(ids), dimension], zeros elsewhere.

    The ranks share the bins, and all get all vectors; each keeps the activations of its own.

    Raises:
        DistributedOutOfMemoryError: On all ranks, when one of them runs out of memory.
    """
    lengths = [len(text) for text in ids]
    share = split_across_ranks(phase.bins, lengths, process_group.size)[process_group.rank]
    bins = [phase.bins[position] for position in share]

    def encode_bins() -> Tensor:
        vectors = [encoder(pack(ids, rows, encoder.device), recompute_layers=phase.recompute_layers) for rows in bins]
        return torch.cat(vectors) if vectors else torch.zeros(0, encoder.dimension, device=encoder.device)

    return process_group.gather_rows(
        process_group.run_on_all(encode_bins), [row for rows in bins for row in rows], len(ids)
    )
