"""Kernels of ``core.encoder.kernels.rms_norm``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.gpu_kernels.rows import held

_PROGRAMS_PER_PROCESSOR = 4


@triton.jit
def _rms_norm(hidden, added, weight, total, normed, epsilon, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program one token. ``added`` and ``total`` are both None or neither."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    start = tl.program_id(0).to(tl.int64) * SIZE
    kind = normed.dtype.element_ty
    value = tl.load(hidden + start + column, mask=inside, other=0).to(tl.float32)
    if added is not None:
        beside = tl.load(added + start + column, mask=inside, other=0).to(tl.float32)
        # The sum as it is stored, and as the backward pass will read it, is what is scaled.
        rounded = (value + beside).to(kind)
        tl.store(total + start + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scaled = value * tl.rsqrt(tl.sum(value * value) / SIZE + epsilon)
    weights = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    tl.store(normed + start + column, (weights * scaled.to(kind).to(tl.float32)).to(kind), mask=inside)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``rms_norm.rms_norm_forward``."""
    hidden = hidden.contiguous()
    normed = torch.empty_like(hidden)
    _launch_rms_norm(hidden, None, weight, None, normed, epsilon)
    return normed


def add_rms_norm(hidden: Tensor, added: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``rms_norm.add_rms_norm``."""
    hidden = hidden.contiguous()
    total, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    _launch_rms_norm(hidden, added.contiguous(), weight, total, normed, epsilon)
    return total, normed


def _launch_rms_norm(
    hidden: Tensor, added: Tensor | None, weight: Tensor, total: Tensor | None, normed: Tensor, epsilon: float
) -> None:
    tokens, size = hidden.shape
    block, warps = held(size)
    _rms_norm[(tokens,)](hidden, added, weight, total, normed, epsilon, size, block, num_warps=warps)


@triton.jit
def _rms_norm_backward(
    gradient, hidden, weight, added, of_hidden, of_weight, tokens, epsilon, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Each program takes every n-th token and sums its share of the weight's gradient in float32."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    weights = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    summed = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0)
    for row in tl.range(first, tokens, tl.num_programs(0), num_stages=2):
        start = tl.cast(row, tl.int64) * SIZE
        value = tl.load(hidden + start + column, mask=inside, other=0).to(tl.float32)
        given = tl.load(gradient + start + column, mask=inside, other=0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value) / SIZE + epsilon)
        scaled = value * scale
        weighted = given * weights
        result = (weighted - scaled * (tl.sum(weighted * scaled) / SIZE)) * scale
        if added is not None:
            result += tl.load(added + start + column, mask=inside, other=0).to(tl.float32)
        tl.store(of_hidden + start + column, result.to(of_hidden.dtype.element_ty), mask=inside)
        summed += given * scaled
    tl.store(of_weight + first * SIZE + column, summed, mask=inside)


def rms_norm_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, epsilon: float, added: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``rms_norm.rms_norm_backward``. Sums in the same order every time."""
    tokens, size = hidden.shape
    gradient, hidden = gradient.contiguous(), hidden.contiguous()
    added = added if added is None else added.contiguous()
    processors = torch.cuda.get_device_properties(hidden.device).multi_processor_count
    programs = min(tokens, _PROGRAMS_PER_PROCESSOR * processors)
    of_hidden = torch.empty_like(hidden)
    of_weight = torch.empty(programs, size, dtype=torch.float32, device=hidden.device)
    block, warps = held(size)
    _rms_norm_backward[(programs,)](
        gradient, hidden, weight, added, of_hidden, of_weight, tokens, epsilon, size, block, num_warps=warps
    )
    return of_hidden, of_weight.sum(0).to(weight.dtype)
