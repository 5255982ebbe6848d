"""Rotary position embedding (Su et al., 2021, arXiv 2104.09864) of queries and keys, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from components.core.encoder.kernel_types import RotaryTables
from components.core.encoder.kernels.gpu import load_gpu_kernels


def rotary_forward(qkv: Tensor, tables: RotaryTables, q_size: int, kv_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``qkv`` and rotate queries and keys by their tokens' positions.

    With the halves ``x1, x2`` of a head: ``(x1 * cos - x2 * sin, x2 * cos + x1 * sin)``, in float32; queries are also
    multiplied by ``tables.query_scale``.

    Args:
        qkv: [tokens, q_size + 2 * kv_size].
        tables: Cosines and sines of the tokens' positions.
        q_size: Query heads times head_dim.
        kv_size: Key heads times head_dim.

    Returns:
        query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim], in the dtype of ``qkv``.
    """
    if qkv.is_cuda:
        return load_gpu_kernels().rotary_forward(qkv, tables, q_size, kv_size)
    cos, sin, query_scale = tables
    sizes = (q_size, kv_size, qkv.shape[1] - q_size - kv_size)
    query, key, value = (part.unflatten(1, (-1, cos.shape[1])) for part in qkv.split(sizes, 1))
    rotated_query = _rotate_halves(query, cos, sin)
    if query_scale is not None:
        rotated_query = rotated_query * query_scale
    return rotated_query.to(qkv.dtype), _rotate_halves(key, cos, sin).to(qkv.dtype), value


def rotary_backward(grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, tables: RotaryTables) -> Tensor:
    """Return the gradient of ``qkv``, given those of ``rotary_forward``'s outputs: rotated by the negative angle.

    ``grad_query`` is [tokens, heads, head_dim], ``grad_key`` and ``grad_value`` are [tokens, kv_heads, head_dim]; the
    result is [tokens, q_size + 2 * kv_size].
    """
    if grad_query.is_cuda:
        return load_gpu_kernels().rotary_backward(grad_query, grad_key, grad_value, tables)
    cos, sin, query_scale = tables
    grad_query_float = grad_query.float() if query_scale is None else grad_query.float() * query_scale
    parts = (_rotate_halves(grad_query_float, cos, -sin), _rotate_halves(grad_key, cos, -sin), grad_value)
    return torch.cat([part.flatten(1).to(grad_query.dtype) for part in parts], 1)


def _rotate_halves(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [tokens, heads, head_dim] in float32; the halves of a head are paired as Hugging Face pairs them."""
    first, second = heads.float().chunk(2, dim=-1)
    half = cos.shape[1] // 2
    cos, sin = cos[:, None, :half], sin[:, None, :half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
