"""BERT, RoBERTa and XLM-RoBERTa over packed texts, by the weights of the Hugging Face model.

Devlin et al., 2019 (arXiv 1810.04805). Dropout is off, as it is while encoding and fine-tuning here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel, RobertaModel, XLMRobertaModel

from components.core.encoder.kernels.attention import AttentionBackend, packed_attention
from components.core.encoder.kernels.matmul import Matmul
from components.core.encoder.packed.packing import PackedBatch

_POSITIONS_AFTER_PADDING = (RobertaModel, XLMRobertaModel)  # count positions from the padding token's id + 1


def supports(backbone: PreTrainedModel) -> bool:
    """Return whether ``PackedBert`` computes ``backbone``: an encoder with GELU and absolute positions."""
    config = backbone.config
    if not isinstance(backbone, (BertModel, *_POSITIONS_AFTER_PADDING)):
        return False
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    return config.hidden_act == "gelu" and not (config.is_decoder or config.add_cross_attention or relative)


class BertLayerWeights(NamedTuple):
    """Weights [out, in] and biases [out] of a layer's projections; weights and biases [dimension] of its norms."""

    q: Tensor
    q_bias: Tensor
    k: Tensor
    k_bias: Tensor
    v: Tensor
    v_bias: Tensor
    o: Tensor
    o_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    attention_norm: Tensor
    attention_norm_bias: Tensor
    mlp_norm: Tensor
    mlp_norm_bias: Tensor


class PackedBert:
    """BERT over packed texts: ``embed_tokens``, then ``layer`` once for each of ``layer_weights``."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        matmul: Matmul,
        *,
        compiled: bool = False,
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        # Its layers are attributes that PreTrainedModel does not declare.
        self._backbone: Any = backbone
        self._matmul = matmul
        self._attention_backend = attention_backend
        self._layer = fuse(_bert_layer) if compiled else _bert_layer
        self._heads: int = backbone.config.num_attention_heads
        self._first_position = (
            self._backbone.config.pad_token_id + 1 if isinstance(backbone, _POSITIONS_AFTER_PADDING) else 0
        )
        self._epsilon: float = backbone.config.layer_norm_eps

    def embed_tokens(self, batch: PackedBatch) -> tuple[Tensor, None]:
        """Return hidden states [tokens, dimension]; the layers need no tables of positions."""
        tables = self._backbone.embeddings
        hidden = (
            nn.functional.embedding(batch.token_ids, tables.word_embeddings.weight)
            + tables.token_type_embeddings.weight[0]
            + nn.functional.embedding(batch.positions + self._first_position, tables.position_embeddings.weight)
        )
        return _layer_norm(hidden, tables.LayerNorm.weight, tables.LayerNorm.bias, self._epsilon), None

    def layer_weights(self) -> list[BertLayerWeights]:
        """Return the weights of each layer."""
        return [_layer_weights(layer) for layer in self._backbone.encoder.layer]

    def layer(self, hidden: Tensor, _: None, batch: PackedBatch, weights: BertLayerWeights) -> Tensor:
        """Run one transformer layer: [tokens, dimension] -> [tokens, dimension]."""
        mark_first_size_dynamic(batch.cu_seqlens)
        return self._layer(
            hidden,
            self._matmul,
            self._heads,
            batch.cu_seqlens,
            batch.max_length,
            weights,
            self._epsilon,
            self._attention_backend,
        )

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return ``hidden``: BERT has no norm after its last layer, and its pooler is not used."""
        return hidden


def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` of tensors to few kernels; one compilation serves every first size of its matrices."""
    compiled = torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call_compiled(*arguments: Any) -> Any:
        mark_first_size_dynamic(*(value for value in arguments if isinstance(value, Tensor) and value.ndim > 1))
        return compiled(*arguments)

    return call_compiled


def mark_first_size_dynamic(*tensors: Tensor) -> None:
    """Tell torch.compile that the first size of ``tensors`` differs from call to call: else it compiles for each."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _layer_weights(layer: Any) -> BertLayerWeights:
    attention, attention_output = layer.attention.self, layer.attention.output
    modules: tuple[Any, ...] = (
        attention.query,
        attention.key,
        attention.value,
        attention_output.dense,
        layer.intermediate.dense,
        layer.output.dense,
        attention_output.LayerNorm,
        layer.output.LayerNorm,
    )
    return BertLayerWeights(*(tensor for module in modules for tensor in (module.weight, module.bias)))


def _bert_layer(
    residual: Tensor,
    matmul: Matmul,
    heads: int,
    cu_seqlens: Tensor,
    max_length: int,
    w: BertLayerWeights,
    epsilon: float,
    attention_backend: AttentionBackend,
) -> Tensor:
    tokens, dimension = residual.shape
    qkv = matmul.linear(residual, torch.cat((w.q, w.k, w.v))) + torch.cat((w.q_bias, w.k_bias, w.v_bias))
    query, key, value = (part.view(tokens, heads, -1).contiguous() for part in qkv.split(dimension, 1))
    attn_out = packed_attention(query, key, value, cu_seqlens, max_length, attention_backend)
    residual = residual + matmul.linear(attn_out.reshape(tokens, dimension), w.o) + w.o_bias
    mlp_in = _layer_norm(residual, w.attention_norm, w.attention_norm_bias, epsilon)
    activation = nn.functional.gelu(matmul.linear(mlp_in, w.up) + w.up_bias)
    mlp_residual = mlp_in + matmul.linear(activation, w.down) + w.down_bias
    return _layer_norm(mlp_residual, w.mlp_norm, w.mlp_norm_bias, epsilon)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return nn.functional.layer_norm(x, weight.shape, weight, bias, epsilon)
