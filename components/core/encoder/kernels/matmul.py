"""Products of activations with weights: the protocol that all layers use, and its bfloat16 implementation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Matmul(Protocol):
    """Products of activations ``x`` [tokens, in] with a weight [out, in], as ``torch.nn.Linear`` stores it."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``x @ weight.T``, [tokens, out]."""
        ...

    def linear_pair(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x @ first.T`` and ``x @ second.T``: what must be done to ``x`` is done once."""
        return self.linear(x, first), self.linear(x, second)

    def linear_add(self, out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Add ``x @ weight.T`` to ``out`` [tokens, out] in place and return it."""
        return out.add_(self.linear(x, weight))


class Bf16Matmul(Matmul):
    """Products in the dtype of the operands, which is bfloat16 on GPUs; differentiable by autograd."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``x @ weight.T``, [tokens, out]."""
        return nn.functional.linear(x, weight)

    def linear_add(self, out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Add ``x @ weight.T`` to ``out`` in place and return it; on GPUs one kernel does both."""
        return out.addmm_(x, weight.t())


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right`` ([m, k], [k, n] of any dtype), accumulated and returned in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def add_matmul_float32(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` ([m, k], [k, n] of any dtype) to ``out``, float32 [m, n], in place."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(out, left, right, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(left.float(), right.float())
