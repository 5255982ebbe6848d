"""Matrix products with weights, in the precision of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Products(Protocol):
    """How products of values [tokens, in] with weights [out, in], transposed, are computed: [tokens, out]."""

    def each(self, values: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """The product of ``values`` with each of ``weights``."""
        ...

    def onto(self, total: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        """``total`` plus the product; ``total`` may be overwritten."""
        ...


class Exact:
    """Products as torch makes them."""

    def each(self, values: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        return [nn.functional.linear(values, weight) for weight in weights]

    def onto(self, total: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        return total.addmm_(values, weight.t())


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """``left`` times ``right``, summed and returned in float32 whatever their precision."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def add_matrix_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left`` times ``right`` to ``total``, which is float32."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())
