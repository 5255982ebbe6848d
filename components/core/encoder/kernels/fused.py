"""torch.compile for functions of tensors whose first size differs from call to call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as one kernel or few; one compilation serves every first size of its matrices."""
    compiled = torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        sizes_vary(*(value for value in arguments if isinstance(value, Tensor) and value.ndim > 1))
        return compiled(*arguments)

    return call


def sizes_vary(*tensors: Tensor) -> None:
    """Say that the first size of these tensors differs from call to call: else each new one is compiled anew."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
