"""Kernel of ``core.encoder.kernels.fp8``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.gpu_kernels.rows import held
from components.core.encoder.kernels.fp8 import FORMAT, LARGEST


@triton.jit
def _rounded(rows, rounded, scales, LARGEST: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program one row, read once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    value = tl.load(rows + row * SIZE + column, mask=inside, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    # Beyond the largest by an error of rounding at most, which the conversion rounds off. NaN stays NaN.
    tl.store(rounded + row * SIZE + column, (value / scale).to(rounded.dtype.element_ty), mask=inside)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``fp8.rounded``."""
    count, size = rows.shape
    result = torch.empty(count, size, dtype=FORMAT, device=rows.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=rows.device)
    block, warps = held(size)
    # A transposed weight is copied first: its rows, read where they are, would be read in pieces of two bytes.
    _rounded[(count,)](rows.contiguous(), result, scales, LARGEST, size, block, num_warps=warps)
    return result, scales
