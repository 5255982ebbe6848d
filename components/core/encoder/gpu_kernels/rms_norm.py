"""RMSNorm, forward and backward: kernels of ``core.encoder.kernels.rms_norm``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.gpu_kernels.launch_sizes import calculate_row_launch

_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [tokens, SIZE], row stride SIZE, column stride 1, as are all matrices here
    added_ptr,  # [tokens, SIZE] or None
    weight_ptr,  # [SIZE]
    residual_ptr,  # [tokens, SIZE] or None, as added_ptr
    normed_ptr,  # [tokens, SIZE]
    epsilon,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # power of 2, at least SIZE
):
    """residual = x + added; normed = weight * residual / sqrt(mean(residual ** 2) + epsilon). One program per token."""
    column = tl.arange(0, BLOCK_SIZE)
    mask = column < SIZE
    start = tl.program_id(0).to(tl.int64) * SIZE
    dtype = normed_ptr.dtype.element_ty
    x = tl.load(x_ptr + start + column, mask=mask, other=0).to(tl.float32)
    if added_ptr is not None:
        added = tl.load(added_ptr + start + column, mask=mask, other=0).to(tl.float32)
        # The sum as it is stored, and as the backward pass will read it, is what is scaled.
        residual = (x + added).to(dtype)
        tl.store(residual_ptr + start + column, residual, mask=mask)
        x = residual.to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x) / SIZE + epsilon)
    weight = tl.load(weight_ptr + column, mask=mask, other=0).to(tl.float32)
    tl.store(normed_ptr + start + column, (weight * normed.to(dtype).to(tl.float32)).to(dtype), mask=mask)


def rms_norm_forward(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return ``x`` [tokens, dimension] scaled to root mean square 1, times ``weight`` [dimension]."""
    x = x.contiguous()
    normed = torch.empty_like(x)
    _launch_rms_norm(x, None, weight, None, normed, epsilon)
    return normed


def add_rms_norm_forward(x: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return ``x + added`` and ``rms_norm_forward`` of it, both [tokens, dimension]."""
    x = x.contiguous()
    residual, normed = torch.empty_like(x), torch.empty_like(x)
    _launch_rms_norm(x, added.contiguous(), weight, residual, normed, epsilon)
    return residual, normed


def _launch_rms_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, residual: Tensor | None, normed: Tensor, epsilon: float
) -> None:
    tokens, size = x.shape
    block_size, num_warps = calculate_row_launch(size)
    _rms_norm_kernel[(tokens,)](x, added, weight, residual, normed, epsilon, size, block_size, num_warps=num_warps)


@triton.jit
def _rms_norm_backward_kernel(
    grad_out_ptr,  # [tokens, SIZE], row stride SIZE, column stride 1, as are all matrices here
    x_ptr,  # [tokens, SIZE]
    weight_ptr,  # [SIZE]
    grad_residual_ptr,  # [tokens, SIZE] or None
    grad_x_ptr,  # [tokens, SIZE]
    grad_weight_ptr,  # float32 [programs, SIZE]: a partial sum of each program
    tokens,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # power of 2, at least SIZE
):
    """With r = 1 / sqrt(mean(x ** 2) + epsilon), n = x * r and g = grad_out * weight:

    grad_x = (g - n * mean(g * n)) * r + grad_residual; grad_weight = sum(grad_out * n). Of P programs each takes every
    P-th token and sums its part of grad_weight in float32.
    """
    column = tl.arange(0, BLOCK_SIZE)
    mask = column < SIZE
    weight = tl.load(weight_ptr + column, mask=mask, other=0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK_SIZE,), tl.float32)
    program = tl.program_id(0)
    for token in tl.range(program, tokens, tl.num_programs(0), num_stages=2):
        start = tl.cast(token, tl.int64) * SIZE
        x = tl.load(x_ptr + start + column, mask=mask, other=0).to(tl.float32)
        grad_out = tl.load(grad_out_ptr + start + column, mask=mask, other=0).to(tl.float32)
        inverse_rms = tl.rsqrt(tl.sum(x * x) / SIZE + epsilon)
        normed = x * inverse_rms
        grad_normed = grad_out * weight
        grad_x = (grad_normed - normed * (tl.sum(grad_normed * normed) / SIZE)) * inverse_rms
        if grad_residual_ptr is not None:
            grad_x += tl.load(grad_residual_ptr + start + column, mask=mask, other=0).to(tl.float32)
        tl.store(grad_x_ptr + start + column, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        grad_weight += grad_out * normed
    tl.store(grad_weight_ptr + program * SIZE + column, grad_weight, mask=mask)


def rms_norm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, epsilon: float, grad_residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``x`` [tokens, dimension], plus ``grad_residual``, and of ``weight`` [dimension].

    Sums are in the same order every time.
    """
    tokens, size = x.shape
    grad_out, x = grad_out.contiguous(), x.contiguous()
    grad_residual = grad_residual if grad_residual is None else grad_residual.contiguous()
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    programs = min(tokens, _PROGRAMS_PER_PROCESSOR * processors)
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty(programs, size, dtype=torch.float32, device=x.device)
    block_size, num_warps = calculate_row_launch(size)
    _rms_norm_backward_kernel[(programs,)](
        grad_out, x, weight, grad_residual, grad_x, grad_weight, tokens, epsilon, size, block_size, num_warps=num_warps
    )
    return grad_x, grad_weight.sum(0).to(weight.dtype)
