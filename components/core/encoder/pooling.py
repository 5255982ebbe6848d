"""From vectors of tokens to vectors of texts, without padding."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from components.core.encoder.kernels.matmul import matrix_product

Pooling = Literal["avg", "cls", "last"]


def pooled(hidden: Tensor, bounds: Tensor, pooling: Pooling) -> Tensor:
    """Vectors of texts, float32 [texts, dimension]; text i is ``hidden[bounds[i]:bounds[i + 1]]``.

    ``avg``: their mean; ``cls``: the first; ``last``: the last.
    """
    if pooling == "avg":
        return _Mean.apply(hidden, bounds)
    return hidden[bounds[:-1] if pooling == "cls" else bounds[1:] - 1].float()


class _Mean(torch.autograd.Function):
    """Sums by a product with ones and zeros: in the same order every time, which scattered additions do not keep."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, bounds: Tensor) -> Tensor:
        ctx.save_for_backward(bounds)
        ctx.tokens, ctx.dtype = hidden.shape[0], hidden.dtype
        place = torch.arange(hidden.shape[0], device=hidden.device)[None]
        of_text = ((place >= bounds[:-1, None]) & (place < bounds[1:, None])).to(hidden.dtype)
        return matrix_product(of_text, hidden) / _lengths(bounds)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (bounds,) = ctx.saved_tensors
        text = torch.bucketize(torch.arange(ctx.tokens, device=gradient.device), bounds[1:], right=True)
        return (gradient / _lengths(bounds)).to(ctx.dtype)[text], None


def _lengths(bounds: Tensor) -> Tensor:
    return bounds.diff()[:, None].float()
