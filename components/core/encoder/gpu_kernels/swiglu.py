"""Kernels of ``core.encoder.kernels.swiglu``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 2048, 8


@triton.jit
def _gate(gates, ups, opened, count, BLOCK: tl.constexpr):
    """Each program ``BLOCK`` of ``count`` numbers."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = tl.arange(0, BLOCK)
    inside = place < count - start
    wide = tl.load(gates + start + place, mask=inside, other=0).to(tl.float32)
    up = tl.load(ups + start + place, mask=inside, other=0).to(tl.float32)
    tl.store(opened + start + place, (wide * tl.sigmoid(wide) * up).to(opened.dtype.element_ty), mask=inside)


@triton.jit
def _gate_back(gradient, gates, ups, of_gates, of_ups, count, BLOCK: tl.constexpr):
    """Each program ``BLOCK`` of ``count`` numbers."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = tl.arange(0, BLOCK)
    inside = place < count - start
    given = tl.load(gradient + start + place, mask=inside, other=0).to(tl.float32)
    wide = tl.load(gates + start + place, mask=inside, other=0).to(tl.float32)
    up = tl.load(ups + start + place, mask=inside, other=0).to(tl.float32)
    opening = tl.sigmoid(wide)
    of_gate = given * up * opening * (1 + wide * (1 - opening))
    kind = of_gates.dtype.element_ty
    tl.store(of_gates + start + place, of_gate.to(kind), mask=inside)
    tl.store(of_ups + start + place, (given * wide * opening).to(kind), mask=inside)


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """``gate.gate``."""
    opened = _like(gates)
    _gate[_programs(gates)](gates.contiguous(), ups.contiguous(), opened, gates.numel(), _BLOCK, num_warps=_WARPS)
    return opened


def gate_back(gradient: Tensor, gates: Tensor, ups: Tensor) -> tuple[Tensor, Tensor]:
    """``gate.gate_back``."""
    of_gates, of_ups = _like(gates), _like(ups)
    given = (part.contiguous() for part in (gradient, gates, ups))
    _gate_back[_programs(gates)](*given, of_gates, of_ups, gates.numel(), _BLOCK, num_warps=_WARPS)
    return of_gates, of_ups


def _like(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _programs(values: Tensor) -> tuple[int]:
    return (triton.cdiv(values.numel(), _BLOCK),)
