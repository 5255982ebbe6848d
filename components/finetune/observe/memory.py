"""How much memory training takes on a GPU, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModel, PretrainedConfig

from components.core.encoder.checkpoint import load_architecture
from components.finetune.component import FinetuneConfig

_MASTER, _GRADIENT, _MOMENTS, _COPY = 4, 4, 8, 2


@dataclass(frozen=True)
class Estimate:
    """Bytes on a GPU that holds the whole model: of ``states`` (weights, gradients, optimizer), of activations.

    ``floor``: activations of the smallest pass that out-of-memory errors lead to.
    """

    states: int
    activations: int
    floor: int

    @property
    def total(self) -> int:
        return self.states + self.activations

    @property
    def least(self) -> int:
        """With the smallest passes."""
        return self.states + self.floor

    def spread_over(self, ranks: int) -> float:
        """On each of ``num_ranks`` GPUs that share the states; layers then keep little for the backward pass."""
        return self.states / ranks + self.floor


def estimate(config: FinetuneConfig, dtype: torch.dtype) -> Estimate:
    """Of the base model that ``config`` names, trained with its settings."""
    architecture = load_architecture(config)
    weights = _count(architecture, config)
    copy = _COPY * weights if dtype == torch.bfloat16 else 0
    trained = 0 if config.lora_rank else weights
    states = _MASTER * weights + copy + (_GRADIENT + _MOMENTS) * trained
    per_token = _bytes_per_token(architecture) * (1 if dtype == torch.bfloat16 else 2)
    longest = max(config.query_max_length, config.passage_max_length)
    return Estimate(states, config.packed_batch_tokens * per_token, longest * per_token)


def _count(architecture: PretrainedConfig, config: FinetuneConfig) -> int:
    """Number of weights; nothing is allocated."""
    with torch.device("meta"):
        model = AutoModel.from_config(architecture, trust_remote_code=config.trust_remote_code)
    return sum(weights.numel() for weights in model.parameters())


def _bytes_per_token(architecture: PretrainedConfig) -> int:
    """Activations of a token that the backward pass needs, in bfloat16.

    Of each layer about 7 vectors of the model's width and 3 of the feed-forward network's: measured 1.23 MB for the 16
    layers of a 1B model on an H200, which this gives as well.
    """
    width: int = architecture.hidden_size
    # Not every family calls it so; four times the width is the usual.
    inner: int = getattr(architecture, "intermediate_size", None) or 4 * width
    return 2 * int(architecture.num_hidden_layers) * (7 * width + 3 * inner)
