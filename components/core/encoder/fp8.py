"""Matrix products in 8-bit floats, one scale per row (formats: Micikevicius et al., 2022, arXiv 2209.05433)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FORMAT = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FORMAT).max


def linear(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` [tokens, in] times ``weight`` [out, in] transposed, both rounded to 8 bits: bfloat16 [tokens, out].

    The gradient of ``values`` is computed likewise, that of ``weight``, a sum over many tokens, in bfloat16. ``in`` and
    ``out`` must be multiples of 16.
    """
    return _Linear.apply(values, weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        values, weight = ctx.saved_tensors
        return _product(gradient, weight.t()), gradient.t() @ values


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left`` [m, k] times ``right`` [n, k] transposed."""
    left8, left_scale = _rounded(left)
    right8, right_scale = _rounded(right)
    if not left.is_cuda:
        return ((left8.float() * left_scale) @ (right8.float() * right_scale).t()).to(left.dtype)
    return torch._scaled_mm(
        left8,
        right8.t(),
        scale_a=left_scale,
        scale_b=right_scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit rows, row after row in memory, and the float32 [rows, 1] that they are to be multiplied by."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (wide / scale).clamp(-_LARGEST, _LARGEST).to(_FORMAT).contiguous(), scale
