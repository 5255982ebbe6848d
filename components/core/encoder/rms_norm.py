"""Scaling to root mean square 1 (Zhang and Sennrich, 2019, arXiv 1910.07467), forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.encoder.gpu import kernels


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``hidden`` [tokens, dimension] scaled to root mean square 1, then by ``weight``; computed in float32."""
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def add_rms_norm(hidden: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Their sum, and the sum scaled."""
    total = hidden + added
    return total, rms_norm(total, weight, epsilon)


def rms_norm_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, epsilon: float, added: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of ``hidden``, plus ``added``, and of ``weight``, given that of ``rms_norm``.

    ``gradient``, ``hidden``, ``added``: [tokens, dimension], contiguous.
    """
    if hidden.is_cuda:
        return kernels().rms_norm_backward(gradient, hidden, weight, epsilon, added)
    wide, gradient = hidden.float(), gradient.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    scaled, weighted = wide * scale, gradient * weight
    of_hidden = (weighted - scaled * (weighted * scaled).mean(-1, keepdim=True)) * scale + added
    return of_hidden.to(hidden.dtype), (gradient * scaled).sum(0).to(weight.dtype)
