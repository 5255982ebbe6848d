"""Matrix products in 8-bit floats, one scale per row (formats: Micikevicius et al., 2022, arXiv 2209.05433)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.gpu import kernels

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max


def linear(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` [tokens, in] times ``weight`` [out, in] transposed, both rounded to 8 bits: bfloat16 [tokens, out].

    The gradient of ``values`` is computed likewise, that of ``weight``, a sum over many tokens, in bfloat16. ``in`` and
    ``out`` must be multiples of 16.
    """
    return _Linear.apply(values, weight)


class Rounded:
    """Products of values and weights rounded to 8 bits, as ``core.encoder.kernels.matmul`` describes them.

    Rounded weights are kept until the weights change: a step has several bins.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, tuple[int, tuple[Tensor, Tensor]]] = {}

    def each(self, values: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        rows = rounded(values)
        return [_rounded_product(*rows, *self._rounded_weight(weight), values.dtype) for weight in weights]

    def onto(self, total: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return total.add_(self.each(values, [weight])[0])

    def _rounded_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        owner = weight if weight._base is None else weight._base
        if not isinstance(owner, nn.Parameter):  # put together for this product only
            return rounded(weight)
        # Of a weight and of its transpose, a view of the same parameter, other rows are rounded.
        place = (id(owner), weight.stride())
        version, rows = self._kept.get(place, (None, None))
        if version != weight._version:
            rows = rounded(weight)
            self._kept[place] = (weight._version, rows)
        return rows


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
    # By torch: BERT compiles its layers, and these products with them.
    return _rounded_product(*_rounded(left), *_rounded(right), left.dtype)


def _rounded_product(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    if not left.is_cuda:
        return ((left.float() * left_scale) @ (right.float() * right_scale).t()).to(dtype)
    return torch._scaled_mm(
        left,
        right.t(),
        scale_a=left_scale,
        scale_b=right_scale.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit rows, row after row in memory, and the float32 [rows, 1] that they are to be multiplied by."""
    return kernels().rounded(rows) if rows.is_cuda else _rounded(rows)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FORMAT).contiguous(), scale
