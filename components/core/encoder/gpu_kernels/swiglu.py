"""SwiGLU, forward and backward: kernels of ``core.encoder.kernels.swiglu``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK_SIZE, _NUM_WARPS = 2048, 8


@triton.jit
def _swiglu_kernel(
    gate_ptr,  # [count], stride 1, as are all tensors here
    up_ptr,  # [count]
    out_ptr,  # [count]
    count,
    BLOCK_SIZE: tl.constexpr,
):
    """out = gate * sigmoid(gate) * up. One program per BLOCK_SIZE of ``count`` numbers."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    offset = tl.arange(0, BLOCK_SIZE)
    mask = offset < count - start
    gate = tl.load(gate_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    tl.store(out_ptr + start + offset, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_backward_kernel(
    grad_out_ptr,  # [count], stride 1, as are all tensors here
    gate_ptr,  # [count]
    up_ptr,  # [count]
    grad_gate_ptr,  # [count]
    grad_up_ptr,  # [count]
    count,
    BLOCK_SIZE: tl.constexpr,
):
    """With s = sigmoid(gate): grad_gate = grad_out * up * s * (1 + gate * (1 - s)), grad_up = grad_out * gate * s.

    One program per BLOCK_SIZE of ``count`` numbers.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_SIZE
    offset = tl.arange(0, BLOCK_SIZE)
    mask = offset < count - start
    grad_out = tl.load(grad_out_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    gate = tl.load(gate_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    up = tl.load(up_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = grad_out * up * sigmoid * (1 + gate * (1 - sigmoid))
    dtype = grad_gate_ptr.dtype.element_ty
    tl.store(grad_gate_ptr + start + offset, grad_gate.to(dtype), mask=mask)
    tl.store(grad_up_ptr + start + offset, (grad_out * gate * sigmoid).to(dtype), mask=mask)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of two tensors of one shape and dtype."""
    out = _empty_contiguous_like(gate)
    _swiglu_kernel[_grid(gate)](
        gate.contiguous(), up.contiguous(), out, gate.numel(), _BLOCK_SIZE, num_warps=_NUM_WARPS
    )
    return out


def swiglu_backward(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``gate`` and ``up``, given that of ``swiglu``'s output; all of one shape."""
    grad_gate, grad_up = _empty_contiguous_like(gate), _empty_contiguous_like(up)
    inputs = (part.contiguous() for part in (grad_out, gate, up))
    _swiglu_backward_kernel[_grid(gate)](*inputs, grad_gate, grad_up, gate.numel(), _BLOCK_SIZE, num_warps=_NUM_WARPS)
    return grad_gate, grad_up


def _empty_contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _grid(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), _BLOCK_SIZE),)
