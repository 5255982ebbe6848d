"""Products in 8-bit floats, E4M3 with one scale per row (Micikevicius et al., 2022, arXiv 2209.05433)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.core.encoder.kernel_types import FP8_DTYPE, FP8_MAX
from components.core.encoder.kernels.gpu import load_gpu_kernels
from components.core.encoder.kernels.matmul import Matmul


class QuantizedRows(NamedTuple):
    """A matrix in 8 bits: ``values * scales`` is about the matrix.

    Attributes:
        values: float8_e4m3fn [rows, columns], contiguous.
        scales: float32 [rows, 1].
    """

    values: Tensor
    scales: Tensor


class Fp8Matmul(Matmul):
    """Products of operands quantized to 8 bits, for layers that write out their own backward pass.

    Autograd does not see them. ``in`` and ``out`` of a weight must be multiples of 16. Quantized weights are kept until
    the weights change: one optimizer step has several bins.
    """

    def __init__(self) -> None:
        self._quantized_weights: dict[tuple[int, tuple[int, ...]], tuple[int, QuantizedRows]] = {}

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``x @ weight.T``, [tokens, out]: bfloat16 on GPUs, else the dtype of ``x``."""
        return _scaled_matmul(quantize(x), self._quantize_weight(weight), x.dtype)

    def linear_pair(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x @ first.T`` and ``x @ second.T``; ``x`` is quantized once."""
        rows = quantize(x)
        return (
            _scaled_matmul(rows, self._quantize_weight(first), x.dtype),
            _scaled_matmul(rows, self._quantize_weight(second), x.dtype),
        )

    def _quantize_weight(self, weight: Tensor) -> QuantizedRows:
        parameter = weight if weight._base is None else weight._base
        if not isinstance(parameter, nn.Parameter):  # concatenated for this product only
            return quantize(weight)
        # A weight and its transpose share a parameter and are quantized along different rows: they are kept separately.
        key = (id(parameter), weight.stride())
        version, rows = self._quantized_weights.get(key, (None, None))
        if rows is None or version != weight._version:
            rows = quantize(weight)
            self._quantized_weights[key] = (weight._version, rows)
        return rows


class Fp8AutogradMatmul(Matmul):
    """The same products for layers whose backward pass is autograd's, and which torch.compile may fuse."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``x @ weight.T``, [tokens, out]; the gradient of ``weight`` is computed in the dtype of ``x``."""
        return _Fp8Linear.apply(x, weight)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _quantize_and_matmul(x, weight)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        # The gradient of the weight is a sum over many tokens: 8 bits would lose it.
        return _quantize_and_matmul(grad_out, weight.t()), grad_out.t() @ x


def quantize(matrix: Tensor) -> QuantizedRows:
    """Quantize [rows, columns] of any floating-point dtype; a row's greatest magnitude becomes ``FP8_MAX``."""
    if matrix.is_cuda:
        return QuantizedRows(*load_gpu_kernels().quantize(matrix))
    return _quantize_by_torch(matrix)


def _quantize_and_matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left`` [m, k] times ``right`` [n, k] transposed."""
    # Quantized by torch, not by the kernel: torch.compile fuses this into the layer.
    return _scaled_matmul(_quantize_by_torch(left), _quantize_by_torch(right), left.dtype)


def _scaled_matmul(left: QuantizedRows, right: QuantizedRows, dtype: torch.dtype) -> Tensor:
    """Return ``left`` [m, k] times ``right`` [n, k] transposed: bfloat16 on GPUs, else ``dtype``."""
    if not left.values.is_cuda:
        return ((left.values.float() * left.scales) @ (right.values.float() * right.scales).t()).to(dtype)
    return torch._scaled_mm(
        left.values,
        right.values.t(),
        scale_a=left.scales,
        scale_b=right.scales.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _quantize_by_torch(matrix: Tensor) -> QuantizedRows:
    matrix_float = matrix.float()
    scales = matrix_float.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return QuantizedRows((matrix_float / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE).contiguous(), scales)
