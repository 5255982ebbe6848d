"""Layers of BERT, RoBERTa and XLM-RoBERTa over packed texts, by the weights of the Hugging Face model.

Devlin et al., 2019 (arXiv 1810.04805). Dropout is off, as it is while encoding and fine-tuning here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel, RobertaModel, XLMRobertaModel

from components.core.encoder.kernels.attention import packed_attention
from components.core.encoder.kernels.fused import fused, sizes_vary
from components.core.encoder.packed.packing import Bin

Linear = Callable[[Tensor, Tensor], Tensor]

_FROM_PADDING = (RobertaModel, XLMRobertaModel)  # count positions from the padding token's id + 1


def supports(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` is computed here: an encoder with GELU and absolute positions."""
    config = backbone.config
    if not isinstance(backbone, (BertModel, *_FROM_PADDING)):
        return False
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    return config.hidden_act == "gelu" and not (config.is_decoder or config.add_cross_attention or relative)


class PackedBert:
    """How BERT computes packed texts: ``embed``, then ``layer`` once for each of ``weights``."""

    def __init__(self, backbone: PreTrainedModel, linear: Linear, *, compiled: bool = False) -> None:
        self._backbone = backbone
        self._linear = linear
        self._layer = fused(_layer) if compiled else _layer
        self._heads: int = backbone.config.num_attention_heads
        self._first = backbone.config.pad_token_id + 1 if isinstance(backbone, _FROM_PADDING) else 0
        self._epsilon: float = backbone.config.layer_norm_eps

    def embed(self, texts: Bin) -> tuple[Tensor, None]:
        """Hidden states [tokens, dimension]; layers need to know nothing else of the tokens."""
        tables = self._backbone.embeddings
        hidden = (
            nn.functional.embedding(texts.token_ids, tables.word_embeddings.weight)
            + tables.token_type_embeddings.weight[0]
            + nn.functional.embedding(texts.positions + self._first, tables.position_embeddings.weight)
        )
        return _layer_norm(hidden, tables.LayerNorm.weight, tables.LayerNorm.bias, self._epsilon), None

    def weights(self) -> list[tuple[Tensor, ...]]:
        """The weights of each layer, as ``layer`` takes them."""
        return [_weights(layer) for layer in self._backbone.encoder.layer]

    def layer(self, hidden: Tensor, _: None, texts: Bin, weights: tuple[Tensor, ...]) -> Tensor:
        """One transformer layer: [tokens, dimension] -> the same."""
        sizes_vary(texts.bounds)
        return self._layer(hidden, self._linear, self._heads, texts.bounds, texts.max_length, weights, self._epsilon)

    def finish(self, hidden: Tensor) -> Tensor:
        """Nothing comes after the last layer: the pooler is not used."""
        return hidden


def _weights(layer: nn.Module) -> tuple[Tensor, ...]:
    attention, mixed = layer.attention.self, layer.attention.output
    linear = (
        attention.query,
        attention.key,
        attention.value,
        mixed.dense,
        layer.intermediate.dense,
        layer.output.dense,
    )
    norms = (mixed.LayerNorm, layer.output.LayerNorm)
    return tuple(tensor for module in (*linear, *norms) for tensor in (module.weight, module.bias))


def _layer(
    hidden: Tensor,
    linear: Linear,
    heads: int,
    bounds: Tensor,
    max_length: int,
    weights: tuple[Tensor, ...],
    epsilon: float,
) -> Tensor:
    q, q_bias, k, k_bias, v, v_bias, o, o_bias, up, up_bias, down, down_bias, *norms = weights
    tokens, dimension = hidden.shape
    joined = linear(hidden, torch.cat((q, k, v))) + torch.cat((q_bias, k_bias, v_bias))
    query, key, value = (part.view(tokens, heads, -1).contiguous() for part in joined.split(dimension, 1))
    mixed = packed_attention(query, key, value, bounds, max_length)
    hidden = _layer_norm(hidden + linear(mixed.reshape(tokens, dimension), o) + o_bias, norms[0], norms[1], epsilon)
    opened = nn.functional.gelu(linear(hidden, up) + up_bias)
    return _layer_norm(hidden + linear(opened, down) + down_bias, norms[2], norms[3], epsilon)


def _layer_norm(hidden: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return nn.functional.layer_norm(hidden, weight.shape, weight, bias, epsilon)
