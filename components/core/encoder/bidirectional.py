"""Llama with bidirectional attention, as llama-nemotron-embed-1b-v2 uses it, without the model's remote code.

Importing this module makes transformers' Auto classes load checkpoints of type ``llama_bidirec``. Weight names are
those of ``LlamaModel``, so checkpoints are interchangeable with the published ones.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel


class LlamaBidirectionalConfig(LlamaConfig):
    """LlamaConfig under the model type of NVIDIA's checkpoints."""

    model_type = "llama_bidirec"


class LlamaBidirectionalModel(LlamaModel):
    """LlamaModel whose tokens attend to every token of the text, before and after."""

    config_class = LlamaBidirectionalConfig

    def __init__(self, config: LlamaBidirectionalConfig) -> None:
        super().__init__(config)
        layers: Any = self.layers
        for layer in layers:
            layer.self_attn.is_causal = False

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        """``input_ids`` and ``attention_mask``: int64 [batch, length]; padding is 0 in the mask."""
        dtype = self.embed_tokens.weight.dtype
        blocked = (1 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        length = attention_mask.shape[1]
        # A mask of four dimensions is used as it stands; transformers would make a causal one of two.
        mask = blocked.expand(-1, 1, length, -1)
        return super().forward(input_ids=input_ids, attention_mask=mask, use_cache=False, **kwargs)


AutoConfig.register(LlamaBidirectionalConfig.model_type, LlamaBidirectionalConfig)
AutoModel.register(LlamaBidirectionalConfig, LlamaBidirectionalModel)
