"""What several ranks share of a gradient: which queries each computes, and the sum of what each contributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.training.phases import partition_groups
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch


def select_local_queries(batch: Batch, process_group: ProcessGroup) -> Sequence[int]:
    """Return the queries of ``batch`` that this rank computes: about as many tokens for each, shared passages together.

    Every rank computes the same partition, and every query belongs to one rank.
    """
    if not process_group.is_distributed:
        return range(len(batch.queries))
    _, members = partition_groups(batch.groups, [len(text) for text in batch.texts], process_group.size)
    return sorted(members[process_group.rank])


def all_reduce_gradients(weights: Iterable[nn.Parameter], process_group: ProcessGroup, config: FinetuneConfig) -> None:
    """Replace the gradient of each trained weight by its sum over all ranks."""
    if not process_group.is_distributed:
        return
    gradients = []
    for weight in weights:
        if weight.requires_grad:
            # A rank without queries in a small batch has no gradients.
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
    dtype = torch.bfloat16 if config.gradient_reduction == "bf16" else torch.float32
    process_group.all_reduce_in_buckets(gradients, dtype)
