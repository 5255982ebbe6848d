"""Bidirectional Llama over packed texts: the same weights and the same vectors, without padding.

The layers' mathematics is that of Llama (Touvron et al., 2023; RMSNorm: Zhang and Sennrich, 2019; rotary positions: Su
et al., 2021; grouped key heads: Ainslie et al., 2023). The module holds no weights of its own: it runs over those of a
``LlamaBidirectionalModel``, so loading, saving and optimizers see nothing but the Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel, PreTrainedModel

from components.core.encoder.attention import packed_attention
from components.core.encoder.fp8 import linear as linear8
from components.core.encoder.packing import Bin, balanced, pack

Pooling = Literal["avg", "cls", "last"]
# Texts tokenised at a time: seconds of work for a GPU, a fraction of one for the tokenizer.
_PIECE = 2048


def supports(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` is a bidirectional Llama as ``PackedLlama`` computes it."""
    config = backbone.config
    return (
        isinstance(backbone, LlamaModel)
        and not any(layer.self_attn.is_causal for layer in backbone.layers)
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.mlp_bias or config.attention_dropout)
    )


def fast(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` runs faster over packed texts: on a GPU, in the precision of the flash kernels."""
    weight = next(backbone.parameters())
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16) and supports(backbone)


class PackedLlama:
    """``backbone`` with pooling and normalisation, for texts packed into bins.

    ``compiled``: fuse each layer with torch.compile; one graph serves all layers and all sizes of bins. ``fp8``: the
    layers' matrix products in 8 bits: faster on Hopper GPUs and less exact.
    """

    def __init__(
        self,
        backbone: LlamaModel,
        pooling: Pooling,
        l2_normalize: bool = True,
        *,
        compiled: bool = False,
        fp8: bool = False,
    ) -> None:
        self.backbone = backbone
        self.pooling = pooling
        self.l2_normalize = l2_normalize
        self.compiled = compiled
        self._linear = linear8 if fp8 else nn.functional.linear
        self._layer: Callable[..., Tensor] = torch.compile(_layer, fullgraph=True) if compiled else _layer
        self._norm: Callable[..., Tensor] = torch.compile(_rms_norm, fullgraph=True) if compiled else _rms_norm

    @property
    def device(self) -> torch.device:
        return self.backbone.embed_tokens.weight.device

    def __call__(self, texts: Bin, *, recompute_layers: int = 0) -> Tensor:
        """Vectors of the bin's texts: float32 [texts, dimension].

        The first ``recompute_layers`` layers keep only their input for the backward pass and compute the rest again.
        """
        backbone = self.backbone
        hidden = nn.functional.embedding(texts.token_ids, backbone.embed_tokens.weight)
        # Rotation tables in float32 even where the layers are bfloat16: exact, and no slower once fused.
        table = torch.empty(0, dtype=torch.float32, device=hidden.device)
        cos, sin = (part[0] for part in backbone.rotary_emb(table, texts.positions[None]))
        bounds = texts.bounds
        self._sizes_vary(cos, sin, bounds)
        for number, layer in enumerate(backbone.layers[: backbone.config.num_hidden_layers]):
            self._sizes_vary(hidden)
            arguments = (
                self._linear,
                hidden,
                cos,
                sin,
                bounds,
                texts.max_length,
                *_weights(layer),
                backbone.config.rms_norm_eps,
            )
            if number < recompute_layers and torch.is_grad_enabled():
                hidden = checkpoint(self._layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = self._layer(*arguments)
        self._sizes_vary(hidden)
        normed = self._norm(hidden, backbone.norm.weight, backbone.config.rms_norm_eps)
        vectors = pooling_matrix(bounds, normed.shape[0], self.pooling) @ normed.float()
        return nn.functional.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    def stream(
        self, texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[list[int]]], capacity: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Vectors of ``texts``, piece by piece: which rows these are, float32 [rows, dimension].

        ``tokenize`` gives the token ids of some texts; bins hold about ``capacity`` tokens. A GPU computes one piece
        while the next is tokenised and packed.
        """
        running: tuple[list[int], Callable[[], np.ndarray]] | None = None
        for start in range(0, len(texts), _PIECE):
            ids = tokenize(texts[start : start + _PIECE])
            groups = balanced([len(text) for text in ids], capacity)
            with torch.inference_mode():
                fetch = _fetch(torch.cat([self(pack(ids, rows, self.device)) for rows in groups]))
            if running:
                yield running[0], running[1]()
            running = [start + row for rows in groups for row in rows], fetch
        if running:
            yield running[0], running[1]()

    def _sizes_vary(self, *tensors: Tensor) -> None:
        """Say that the first dimension differs from bin to bin: else every new size is compiled anew."""
        if self.compiled:
            for tensor in tensors:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _fetch(vectors: Tensor) -> Callable[[], np.ndarray]:
    """Start copying ``vectors`` to the host; the function returned waits for it."""
    if not vectors.is_cuda:
        return vectors.numpy
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def pooling_matrix(bounds: Tensor, tokens: int, pooling: Pooling) -> Tensor:
    """The matrix that makes text vectors of token vectors: float32 [texts, tokens].

    A product sums in the same order every time, also in the backward pass; scattered additions do not.
    """
    starts, ends = bounds[:-1, None], bounds[1:, None]
    place = torch.arange(tokens, device=bounds.device)[None]
    if pooling == "cls":
        return (place == starts).float()
    if pooling == "last":
        return (place == ends - 1).float()
    return ((place >= starts) & (place < ends)).float() / (ends - starts)


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
    cos: Tensor,
    sin: Tensor,
    bounds: Tensor,
    max_length: int,
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    mlp_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    epsilon: float,
) -> Tensor:
    """One transformer layer: [tokens, dimension] -> the same. ``cos``, ``sin``: float32 [tokens, head size]."""
    tokens, size = cos.shape
    normed = _rms_norm(hidden, attention_norm, epsilon)
    # One product for three: joining the weights costs 0.1 % of it, and they keep their own names and gradients.
    joined = linear(normed, torch.cat((q, k, v)))
    query, key, value = (part.view(tokens, -1, size) for part in joined.split((q.shape[0], k.shape[0], v.shape[0]), 1))
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    mixed = packed_attention(query, key, value.contiguous(), bounds, max_length)
    hidden = hidden + linear(mixed.reshape(tokens, -1), o)
    normed = _rms_norm(hidden, mlp_norm, epsilon)
    # Two products, not one: the backward pass of one would have to join two gradients in memory first.
    opened = nn.functional.silu(linear(normed, gate)) * linear(normed, up)
    return hidden + linear(opened, down)


def _rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [tokens, heads, size], halves paired as Hugging Face pairs them."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(heads.dtype)
