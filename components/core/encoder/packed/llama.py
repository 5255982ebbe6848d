"""Bidirectional Llama and Ministral over packed texts, by the weights of the Hugging Face model.

Ministral (transformers' ``ministral3``, as Nemotron-3-Embed uses it) differs by the scale of queries far into a long
text.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaModel, Ministral3Model, PreTrainedModel

from components.core.encoder.kernel_types import RotaryTables
from components.core.encoder.kernels.attention import AttentionBackend
from components.core.encoder.kernels.master_weights import accumulate_embedding_grad
from components.core.encoder.kernels.matmul import Matmul
from components.core.encoder.kernels.rms_norm import rms_norm
from components.core.encoder.packed.llama_layer import LlamaLayer, LlamaLayerOptions, LlamaLayerWeights
from components.core.encoder.packed.packing import PackedBatch


def supports(backbone: PreTrainedModel) -> bool:
    """Return whether ``PackedLlama`` computes ``backbone``: bidirectional attention, no biases, no dropout."""
    config: Any = backbone.config
    if isinstance(backbone, Ministral3Model):
        bidirectional = getattr(config, "is_causal", True) is False and config.sliding_window is None
    else:
        bidirectional = isinstance(backbone, LlamaModel) and not any(
            layer.self_attn.is_causal for layer in cast(Any, backbone).layers
        )
    biases = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    return bidirectional and config.hidden_act == "silu" and not (biases or config.attention_dropout)


class PackedLlama:
    """Llama over packed texts: ``embed_tokens``, ``layer`` once for each of ``layer_weights``, ``final_norm``."""

    def __init__(
        self, backbone: PreTrainedModel, matmul: Matmul, *, attention_backend: AttentionBackend = "auto"
    ) -> None:
        # Its layers are attributes that PreTrainedModel does not declare.
        self._backbone: Any = backbone
        self._options = LlamaLayerOptions(backbone.config.rms_norm_eps, matmul, attention_backend)

    def embed_tokens(self, batch: PackedBatch) -> tuple[Tensor, RotaryTables]:
        """Return hidden states [tokens, dimension] and the rotations of the tokens' positions."""
        hidden = embed_tokens(batch.token_ids, self._backbone.embed_tokens.weight)
        # Rotation tables in float32 even where the layers are bfloat16: exact, and no slower: one kernel reads them.
        table = torch.empty(0, dtype=torch.float32, device=hidden.device)
        cos, sin = (part[0] for part in self._backbone.rotary_emb(table, batch.positions[None]))
        return hidden, RotaryTables(cos, sin, self._query_scale(batch))

    def layer_weights(self) -> list[LlamaLayerWeights]:
        """Return the weights of each layer."""
        return [_layer_weights(layer) for layer in self._backbone.layers[: self._backbone.config.num_hidden_layers]]

    def layer(self, hidden: Tensor, rotary: RotaryTables, batch: PackedBatch, weights: LlamaLayerWeights) -> Tensor:
        """Run one transformer layer: [tokens, dimension] -> [tokens, dimension]."""
        return LlamaLayer.apply(self._options, hidden, rotary, batch.cu_seqlens, batch.max_length, *weights)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run what follows the last layer: [tokens, dimension] -> [tokens, dimension]."""
        return rms_norm(hidden, self._backbone.norm.weight, self._options.epsilon)

    def _query_scale(self, batch: PackedBatch) -> Tensor | None:
        """Return float32 [tokens, 1, 1], or None where it is 1: always for Llama, for usual lengths for Ministral."""
        rope = getattr(self._backbone.config, "rope_parameters", None) or {}
        growth, unscaled = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if not growth or not unscaled or batch.max_length <= unscaled:
            return None
        return 1 + growth * torch.log1p(torch.floor(batch.positions / unscaled))[:, None, None]


def embed_tokens(token_ids: Tensor, table: Tensor) -> Tensor:
    """Look up ``token_ids``, int64 [tokens], in ``table`` [vocabulary, dimension]: [tokens, dimension]."""
    return _EmbedTokens.apply(token_ids, table)


class _EmbedTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token_ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        ctx.table = table
        return nn.functional.embedding(token_ids, table)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, Tensor | None]:
        return None, accumulate_embedding_grad(ctx.table, ctx.saved_tensors[0], grad_out)


def _layer_weights(layer: Any) -> LlamaLayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LlamaLayerWeights(
        attention_norm=layer.input_layernorm.weight,
        q=attention.q_proj.weight,
        k=attention.k_proj.weight,
        v=attention.v_proj.weight,
        o=attention.o_proj.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj.weight,
        up=mlp.up_proj.weight,
        down=mlp.down_proj.weight,
    )
