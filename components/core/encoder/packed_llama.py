"""Layers of bidirectional Llama and Ministral over packed texts, by the weights of the Hugging Face model.

RMSNorm: Zhang and Sennrich, 2019; rotary positions: Su et al., 2021; grouped key heads: Ainslie et al., 2023. Ministral
(transformers' ``ministral3``, as Nemotron-3-Embed uses it) differs by the scale of queries far into a long text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, Ministral3Model, PreTrainedModel

from components.core.encoder.attention import packed_attention
from components.core.encoder.packing import Bin


def supports(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` is computed here: attention in both directions, no biases, no dropout."""
    config = backbone.config
    if isinstance(backbone, Ministral3Model):
        bidirectional = getattr(config, "is_causal", True) is False and config.sliding_window is None
    else:
        bidirectional = isinstance(backbone, LlamaModel) and not any(
            layer.self_attn.is_causal for layer in backbone.layers
        )
    biases = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    return bidirectional and config.hidden_act == "silu" and not (biases or config.attention_dropout)


class PackedLlama:
    """How Llama computes packed texts: ``embed``, then ``layer`` once for each of ``weights``, then ``finish``."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone
        self.epsilon: float = backbone.config.rms_norm_eps

    def embed(self, texts: Bin) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Hidden states [tokens, dimension], and what every layer needs to know of the tokens' positions."""
        hidden = nn.functional.embedding(texts.token_ids, self._backbone.embed_tokens.weight)
        # Rotation tables in float32 even where the layers are bfloat16: exact, and no slower once fused.
        table = torch.empty(0, dtype=torch.float32, device=hidden.device)
        cos, sin = (part[0] for part in self._backbone.rotary_emb(table, texts.positions[None]))
        return hidden, (cos, sin, self._query_scale(texts))

    def weights(self) -> list[tuple[Tensor, ...]]:
        """The weights of each layer, as ``layer`` takes them."""
        return [_weights(layer) for layer in self._backbone.layers[: self._backbone.config.num_hidden_layers]]

    @property
    def layer(self) -> Callable[..., Tensor]:
        return _layer

    def finish(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """What comes after the last layer, and its arguments beside the hidden states."""
        return rms_norm, (self._backbone.norm.weight, self.epsilon)

    def _query_scale(self, texts: Bin) -> Tensor | None:
        """float32 [tokens]; None where it is 1 for all: Llama always, Ministral for texts of usual length."""
        rope = getattr(self._backbone.config, "rope_parameters", None) or {}
        growth, unscaled = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if not growth or texts.max_length <= unscaled:
            return None
        return 1 + growth * torch.log1p(torch.floor(texts.positions / unscaled))


def _weights(layer: nn.Module) -> tuple[Tensor, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        layer.input_layernorm.weight,
        *(projection.weight for projection in projections),
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def _layer(
    linear: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    positions: tuple[Tensor, Tensor, Tensor | None],
    bounds: Tensor,
    max_length: int,
    weights: tuple[Tensor, ...],
    epsilon: float,
) -> Tensor:
    """One transformer layer: [tokens, dimension] -> the same. Rotation tables: float32 [tokens, head size]."""
    attention_norm, q, k, v, o, mlp_norm, gate, up, down = weights
    cos, sin, scale = positions
    tokens, size = cos.shape
    normed = rms_norm(hidden, attention_norm, epsilon)
    # One product for three: joining the weights costs 0.1 % of it, and they keep their own names and gradients.
    joined = linear(normed, torch.cat((q, k, v)))
    query, key, value = (part.view(tokens, -1, size) for part in joined.split((q.shape[0], k.shape[0], v.shape[0]), 1))
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    if scale is not None:
        query = query * scale[:, None, None].to(query.dtype)
    mixed = packed_attention(query, key, value.contiguous(), bounds, max_length)
    hidden = hidden + linear(mixed.reshape(tokens, -1), o)
    normed = rms_norm(hidden, mlp_norm, epsilon)
    # Two products, not one: the backward pass of one would have to join two gradients in memory first.
    opened = nn.functional.silu(linear(normed, gate)) * linear(normed, up)
    return hidden + linear(opened, down)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``hidden`` scaled to root mean square 1, then by ``weight``; computed in float32."""
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [tokens, heads, size], halves paired as Hugging Face pairs them."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(heads.dtype)
