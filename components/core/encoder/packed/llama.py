"""Bidirectional Llama and Ministral over packed texts, by the weights of the Hugging Face model.

Ministral (transformers' ``ministral3``, as Nemotron-3-Embed uses it) differs by the scale of queries far into a long
text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaModel, Ministral3Model, PreTrainedModel

from components.core.encoder.kernels.embedding import embedded
from components.core.encoder.kernels.matmul import Products
from components.core.encoder.kernels.rms_norm import rms_norm
from components.core.encoder.kernels.rotary import Positions
from components.core.encoder.packed.llama_layer import LlamaLayer
from components.core.encoder.packed.packing import Bin


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

    def __init__(self, backbone: PreTrainedModel, products: Products) -> None:
        self._backbone = backbone
        self._layer = LlamaLayer(backbone.config.rms_norm_eps, products)

    def embed(self, texts: Bin) -> tuple[Tensor, Positions]:
        """Hidden states [tokens, dimension], and what every layer needs to know of the tokens' positions."""
        hidden = embedded(texts.token_ids, self._backbone.embed_tokens.weight)
        # Rotation tables in float32 even where the layers are bfloat16: exact, and no slower: one kernel reads them.
        table = torch.empty(0, dtype=torch.float32, device=hidden.device)
        cos, sin = (part[0] for part in self._backbone.rotary_emb(table, texts.positions[None]))
        return hidden, (cos, sin, self._query_scale(texts))

    def weights(self) -> list[tuple[Tensor, ...]]:
        """The weights of each layer, as ``layer`` takes them."""
        return [_weights(layer) for layer in self._backbone.layers[: self._backbone.config.num_hidden_layers]]

    def layer(self, hidden: Tensor, positions: Positions, texts: Bin, weights: tuple[Tensor, ...]) -> Tensor:
        """One transformer layer: [tokens, dimension] -> the same."""
        return self._layer(hidden, positions, texts.bounds, texts.max_length, weights)

    def finish(self, hidden: Tensor) -> Tensor:
        """What comes after the last layer."""
        return rms_norm(hidden, self._backbone.norm.weight, self._layer.epsilon)

    def _query_scale(self, texts: Bin) -> Tensor | None:
        """float32 [tokens, 1, 1]; None where it is 1 for all: Llama always, Ministral for texts of usual length."""
        rope = getattr(self._backbone.config, "rope_parameters", None) or {}
        growth, unscaled = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
        if not growth or texts.max_length <= unscaled:
            return None
        return 1 + growth * torch.log1p(torch.floor(texts.positions / unscaled))[:, None, None]


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
