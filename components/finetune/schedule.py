"""Optimizer and learning rate, as the recipe has them."""

from __future__ import annotations

import math

import torch
from torch import nn

from components.finetune.component import FinetuneConfig

_FIRST_SHARE = 0.1  # of the peak, at the first step of the warm-up
_LAST_SHARE = 0.01  # of the peak, at the last step


def build_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW in float32; no weight decay on norms and biases, which have one dimension."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = trained[0].device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def interval(every: int | None, total: int, config: FinetuneConfig) -> int | None:
    """Steps between saves, or measurements: ``every``, but a third of ``total`` where that would make fewer than three.

    None stays None: never.
    """
    if every is None or not config.auto_scale_checkpoint_intervals or total >= 3 * every:
        return every
    return max(1, total // 3)


def learning_rate(step: int, total: int, config: FinetuneConfig) -> float:
    """The rate of optimizer step ``step`` of ``total``, counted from 0: a linear warm-up, then the decay.

    The warm-up is at most a tenth of all steps.
    """
    warmup = min(config.lr_warmup_steps, total // 10)
    if step < warmup:
        return config.learning_rate * (_FIRST_SHARE + (1 - _FIRST_SHARE) * step / warmup)
    if config.lr_decay_style == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total - 1 - warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.lr_decay_style == "cosine" else 1 - done
    return config.learning_rate * (_LAST_SHARE + (1 - _LAST_SHARE) * left)
