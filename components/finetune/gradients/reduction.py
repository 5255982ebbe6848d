"""Gradients of several ranks: how queries are shared out, and the sum of what each contributes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.training.phases import partition_groups
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch


def own_queries(batch: Batch, process_group: ProcessGroup) -> Sequence[int]:
    """The queries of ``batch`` that this rank computes: about as many tokens for each, shared passages together.

    Every rank finds the same plan, and every query belongs to one of them.
    """
    if not process_group.is_distributed:
        return range(len(batch.queries))
    _, members = partition_groups(batch.groups, [len(text) for text in batch.texts], process_group.size)
    return sorted(members[process_group.rank])


def add_up(weights: Iterable[nn.Parameter], process_group: ProcessGroup, config: FinetuneConfig) -> None:
    """Give each of the trained ``weights`` the sum of its gradients on all ranks."""
    if not process_group.is_distributed:
        return
    trained = [parameter for parameter in weights if parameter.requires_grad]
    for parameter in trained:
        # A rank without queries in a small batch has none.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    dtype = torch.bfloat16 if config.gradient_reduction == "bf16" else torch.float32
    process_group.all_reduce_in_buckets([parameter.grad for parameter in trained], dtype)
