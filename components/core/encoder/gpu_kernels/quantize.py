"""Quantization to 8-bit floats with one scale per row: kernel of ``core.encoder.kernels.fp8``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.gpu_kernels.launch_sizes import calculate_row_launch
from components.core.encoder.kernel_types import FP8_DTYPE, FP8_MAX


@triton.jit
def _quantize_kernel(
    matrix_ptr,  # [rows, SIZE], row stride SIZE, column stride 1
    values_ptr,  # float8 [rows, SIZE], row stride SIZE, column stride 1
    scales_ptr,  # float32 [rows]
    FP8_MAX: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # power of 2, at least SIZE
):
    """scales = max(abs(row)) / FP8_MAX; values = row / scales. One program per row, which it reads once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_SIZE)
    mask = column < SIZE
    x = tl.load(matrix_ptr + row * SIZE + column, mask=mask, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x)), 1e-12) / FP8_MAX
    tl.store(scales_ptr + row, scale)
    # Beyond FP8_MAX by an error of rounding at most, which the conversion rounds off. NaN stays NaN.
    tl.store(values_ptr + row * SIZE + column, (x / scale).to(values_ptr.dtype.element_ty), mask=mask)


def quantize(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8-bit values [rows, columns] and the float32 scales [rows, 1] of ``matrix`` [rows, columns]."""
    rows, size = matrix.shape
    values = torch.empty(rows, size, dtype=FP8_DTYPE, device=matrix.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=matrix.device)
    block_size, num_warps = calculate_row_launch(size)
    # A transposed weight is copied first: its rows, read where they are, would be read in pieces of two bytes.
    _quantize_kernel[(rows,)](matrix.contiguous(), values, scales, FP8_MAX, size, block_size, num_warps=num_warps)
    return values, scales
