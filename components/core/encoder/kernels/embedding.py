"""Rows of an embedding table, and the gradient of only these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.master_weights import add_rows


def embedded(token_ids: Tensor, table: Tensor) -> Tensor:
    """Rows ``token_ids`` [tokens] of ``table`` [vocabulary, dimension]."""
    return _Embedded.apply(token_ids, table)


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token_ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        ctx.table = table
        return nn.functional.embedding(token_ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:
        return None, add_rows(ctx.table, *ctx.saved_tensors, gradient)
