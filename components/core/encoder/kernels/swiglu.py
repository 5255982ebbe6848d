"""Gated units (Shazeer, 2020, arXiv 2002.05202) with SiLU, forward and backward; computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.gpu import kernels


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """``ups`` times SiLU of ``gates``, both [tokens, intermediate] and of one type."""
    if gates.is_cuda:
        return kernels().gate(gates, ups)
    return (nn.functional.silu(gates.float()) * ups).to(gates.dtype)


def gate_back(gradient: Tensor, gates: Tensor, ups: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``gates`` and of ``ups``, given that of ``gate``."""
    if gates.is_cuda:
        return kernels().gate_back(gradient, gates, ups)
    wide, gradient = gates.float(), gradient.float()
    opening = torch.sigmoid(wide)
    of_gates = gradient * ups * opening * (1 + wide * (1 - opening))
    return of_gates.to(gates.dtype), (gradient * wide * opening).to(ups.dtype)
