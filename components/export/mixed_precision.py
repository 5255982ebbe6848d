"""Half precision, with islands that stay in float32."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from components.core.errors import InputError


def convert_to_half(backbone: nn.Module, *, norms_in_fp32: bool, patterns: list[str]) -> None:
    """Turn ``backbone`` into float16, in place, but for normalisation layers and modules whose names match.

    An island gets its inputs as float32 and gives float16. In an exported graph these are casts: a strongly typed
    TensorRT network keeps them, as it takes every precision from the graph.
    Raises InputError for a pattern that no module's name matches.
    """
    named = dict(backbone.named_modules())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            some = ", ".join([name for name in named if name][:5])
            raise InputError(f"override_layers_to_fp32: no module is called '{pattern}': names are like {some}")
    backbone.half()
    for name, module in named.items():
        if (norms_in_fp32 and _is_norm(module)) or any(fnmatchcase(name, pattern) for pattern in patterns):
            module.float()
            module.register_forward_pre_hook(_widen, with_kwargs=True)
            module.register_forward_hook(_narrow)


def _is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm and every model's own class of that name; those have no modules inside."""
    return type(module).__name__.endswith("Norm") and not any(module.children())


def _widen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_cast(a, torch.float32) for a in args), {name: _cast(a, torch.float32) for name, a in kwargs.items()}


def _narrow(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_cast(part, torch.float16) for part in output)
    return _cast(output, torch.float16)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value
