"""Rotary positions (Su et al., 2021, arXiv 2104.09864) of queries and keys that one product made together."""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.encoder.kernels.gpu import kernels

Positions = tuple[Tensor, Tensor, Tensor | None]
"""Cosines and sines of rotations, float32 [tokens, head size]; what queries are scaled by, float32 [tokens, 1, 1]."""


def rotate(joined: Tensor, positions: Positions, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """[tokens, ``queries`` + 2 ``keys``] -> query and key, turned, and value: each [tokens, heads, head size]."""
    if joined.is_cuda:
        return kernels().rotate(joined, positions, queries, keys)
    cos, sin, scale = positions
    sizes = (queries, keys, joined.shape[1] - queries - keys)
    query, key, value = (part.unflatten(1, (-1, cos.shape[1])) for part in joined.split(sizes, 1))
    turned = _turned(query, cos, sin) if scale is None else _turned(query, cos, sin) * scale
    return turned.to(joined.dtype), _turned(key, cos, sin).to(joined.dtype), value


def rotate_back(query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
    """The gradient of ``rotate``'s input, given those of its outputs: turned the other way."""
    if query.is_cuda:
        return kernels().rotate_back(query, key, value, positions)
    cos, sin, scale = positions
    wide = query.float() if scale is None else query.float() * scale
    parts = (_turned(wide, cos, -sin), _turned(key, cos, -sin), value)
    return torch.cat([part.flatten(1).to(query.dtype) for part in parts], 1)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[tokens, heads, size] in float32, halves paired as Hugging Face pairs them."""
    first, second = heads.float().chunk(2, dim=-1)
    half = cos.shape[1] // 2
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
