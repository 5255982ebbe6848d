"""From vectors of tokens to vectors of texts, without padding."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from components.core.encoder.kernels.matmul import matmul_float32

Pooling = Literal["avg", "cls", "last"]


def pool_packed(hidden: Tensor, cu_seqlens: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector per text.

    Args:
        hidden: [tokens, dimension], any floating-point dtype.
        cu_seqlens: int32 [texts + 1]; text i is tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``.
        pooling: ``avg``: the mean of a text's tokens; ``cls``: the first; ``last``: the last.

    Returns:
        float32 [texts, dimension].
    """
    if pooling == "avg":
        return _MeanPool.apply(hidden, cu_seqlens)
    return hidden[cu_seqlens[:-1] if pooling == "cls" else cu_seqlens[1:] - 1].float()


class _MeanPool(torch.autograd.Function):
    """Sums by a product with ones and zeros: in the same order every time, which scattered additions do not keep."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        ctx.save_for_backward(cu_seqlens)
        ctx.tokens, ctx.dtype = hidden.shape[0], hidden.dtype
        token = torch.arange(hidden.shape[0], device=hidden.device)[None]
        is_in_text = ((token >= cu_seqlens[:-1, None]) & (token < cu_seqlens[1:, None])).to(hidden.dtype)
        return matmul_float32(is_in_text, hidden) / _text_lengths(cu_seqlens)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
        (cu_seqlens,) = ctx.saved_tensors
        text = torch.bucketize(torch.arange(ctx.tokens, device=grad_out.device), cu_seqlens[1:], right=True)
        return (grad_out / _text_lengths(cu_seqlens)).to(ctx.dtype)[text], None


def _text_lengths(cu_seqlens: Tensor) -> Tensor:
    """Return float32 [texts, 1]."""
    return cu_seqlens.diff()[:, None].float()
