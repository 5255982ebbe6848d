"""RMSNorm (Zhang and Sennrich, 2019, arXiv 1910.07467), forward and backward; computed in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from components.core.encoder.kernels.gpu import load_gpu_kernels


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return ``rms_norm_forward(x, weight, epsilon)``, differentiable by autograd."""
    return _RmsNorm.apply(x, weight, epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return rms_norm_forward(x, weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return *rms_norm_backward(grad_out, x, weight, ctx.epsilon), None


def rms_norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return ``weight * x / sqrt(mean(x ** 2) + epsilon)``, the mean being that of a row.

    Args:
        x: [tokens, dimension], any floating-point dtype.
        weight: [dimension], in the dtype of ``x``.
        epsilon: Added to the mean.

    Returns:
        [tokens, dimension] in the dtype of ``x``.
    """
    if x.is_cuda:
        return load_gpu_kernels().rms_norm_forward(x, weight, epsilon)
    x_float = x.float()
    normed = x_float * torch.rsqrt(x_float.square().mean(-1, keepdim=True) + epsilon)
    return weight * normed.to(x.dtype)


def add_rms_norm_forward(x: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return ``residual = x + added`` and ``rms_norm_forward(residual, weight, epsilon)``, both [tokens, dimension]."""
    if x.is_cuda:
        return load_gpu_kernels().add_rms_norm_forward(x, added, weight, epsilon)
    residual = x + added
    return residual, rms_norm_forward(residual, weight, epsilon)


def rms_norm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, epsilon: float, grad_residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``x`` [tokens, dimension] and ``weight`` [dimension].

    With ``r = 1 / sqrt(mean(x ** 2) + epsilon)``, ``n = x * r`` and ``g = grad_out * weight``:
    ``grad_x = (g - n * mean(g * n)) * r`` and ``grad_weight = sum(grad_out * n)`` over the tokens.

    Args:
        grad_out: Gradient of ``rms_norm_forward``'s output, [tokens, dimension].
        x: Its input, [tokens, dimension].
        weight: Its weight, [dimension].
        epsilon: Added to the mean.
        grad_residual: Gradient that reaches ``x`` past the norm, [tokens, dimension]; added to ``grad_x``.
    """
    if x.is_cuda:
        return load_gpu_kernels().rms_norm_backward(grad_out, x, weight, epsilon, grad_residual)
    x_float, grad_out = x.float(), grad_out.float()
    inverse_rms = torch.rsqrt(x_float.square().mean(-1, keepdim=True) + epsilon)
    normed, grad_normed = x_float * inverse_rms, grad_out * weight
    grad_x = (grad_normed - normed * (grad_normed * normed).mean(-1, keepdim=True)) * inverse_rms
    if grad_residual is not None:
        grad_x += grad_residual
    return grad_x.to(x.dtype), (grad_out * normed).sum(0).to(weight.dtype)
