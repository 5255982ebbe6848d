"""The functions of flash-attn that transformers calls, over the FlashAttention-2 kernels compiled into torch."""

from __future__ import annotations

import pkgutil

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__version__ = "2.8.3"
# flash-attn-4 lives in flash_attn.cute, in a folder of its own.
__path__ = pkgutil.extend_path(__path__, __name__)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_q, cu_k, max_q, max_k, 0.0, causal, False, scale=scale
        )
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, state, unused)
        ctx.rest = max_q, max_k, causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        q, k, v, out, lse, cu_q, cu_k, state, unused = ctx.saved_tensors
        max_q, max_k, causal, scale = ctx.rest
        gradients = torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), q, k, v, out, lse, cu_q, cu_k, max_q, max_k, 0.0, causal, state, unused, scale=scale
        )
        return *gradients, None, None, None, None, None, None


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention within packed texts: q [tokens, heads, size]; k, v [tokens, kv_heads, size]."""
    _no_dropout(dropout_p)
    cu_q, cu_k = cu_seqlens_q.to(torch.int32), cu_seqlens_k.to(torch.int32)
    return _Flash.apply(q, k, v, cu_q, cu_k, int(max_seqlen_q), int(max_seqlen_k), softmax_scale, causal)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention without padding mask: q [batch, length, heads, size]; k, v [batch, length, kv_heads, size]."""
    _no_dropout(dropout_p)
    return _Flash.apply(q, k, v, None, None, q.shape[1], k.shape[1], softmax_scale, causal)


def flash_attn_with_kvcache(*_: Tensor) -> Tensor:
    """Generation only."""
    raise NotImplementedError


def _no_dropout(dropout_p: float) -> None:
    if dropout_p:
        raise NotImplementedError("dropout")
