"""Scaling to root mean square 1 (Zhang and Sennrich, 2019, arXiv 1910.07467), forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.core.encoder.kernels.gpu import kernels


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``rms_norm_forward`` for autograd."""
    return _RmsNorm.apply(hidden, weight, epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.epsilon = epsilon
        return rms_norm_forward(hidden, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *rms_norm_backward(gradient, *ctx.saved_tensors, ctx.epsilon), None


def rms_norm_forward(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``hidden`` [tokens, dimension] scaled to root mean square 1, then by ``weight``; computed in float32."""
    if hidden.is_cuda:
        return kernels().rms_norm(hidden, weight, epsilon)
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def add_rms_norm(hidden: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Their sum, and the sum scaled."""
    if hidden.is_cuda:
        return kernels().add_rms_norm(hidden, added, weight, epsilon)
    total = hidden + added
    return total, rms_norm_forward(total, weight, epsilon)


def rms_norm_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, epsilon: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of ``hidden``, plus ``added``, and of ``weight``, given that of ``rms_norm_forward``.

    ``gradient``, ``hidden``, ``added``: [tokens, dimension].
    """
    if hidden.is_cuda:
        return kernels().rms_norm_backward(gradient, hidden, weight, epsilon, added)
    wide, gradient = hidden.float(), gradient.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    scaled, weighted = wide * scale, gradient * weight
    of_hidden = (weighted - scaled * (weighted * scaled).mean(-1, keepdim=True)) * scale
    if added is not None:
        of_hidden += added
    return of_hidden.to(hidden.dtype), (gradient * scaled).sum(0).to(weight.dtype)
