"""Rotary position embedding, forward and backward: kernels of ``core.encoder.kernels.rotary``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.kernel_types import RotaryTables


@triton.jit
def _rotate_heads(
    source_ptr,  # [HEADS, 2 * HALF] of one token, row stride 2 * HALF, column stride 1
    target_ptr,  # [HEADS, 2 * HALF], same strides
    cos,  # float32 [1, BLOCK_HALF]
    sin,  # float32 [1, BLOCK_HALF]
    scale,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,  # power of 2, at least HEADS
    BLOCK_HALF: tl.constexpr,  # power of 2, at least HALF
):
    """target = scale * (x1 * cos - x2 * sin, x2 * cos + x1 * sin), with x1, x2 the halves of each head of a token."""
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None]
    mask = (head < HEADS) & (column < HALF)
    offset = head * 2 * HALF + column
    first = tl.load(source_ptr + offset, mask=mask, other=0).to(tl.float32)
    second = tl.load(source_ptr + offset + HALF, mask=mask, other=0).to(tl.float32)
    dtype = target_ptr.dtype.element_ty
    tl.store(target_ptr + offset, ((first * cos - second * sin) * scale).to(dtype), mask=mask)
    tl.store(target_ptr + offset + HALF, ((second * cos + first * sin) * scale).to(dtype), mask=mask)


@triton.jit
def _rotary_kernel(
    qkv_ptr,  # [tokens, (HEADS + 2 * KV_HEADS) * 2 * HALF], as all matrices here contiguous
    query_ptr,  # [tokens, HEADS, 2 * HALF]
    key_ptr,  # [tokens, KV_HEADS, 2 * HALF]
    value_ptr,  # [tokens, KV_HEADS, 2 * HALF]
    cos_ptr,  # float32 [tokens, 2 * HALF], of which the first HALF of each row are read
    sin_ptr,  # float32 [tokens, 2 * HALF], the same
    query_scale_ptr,  # float32 [tokens]; not read unless HAS_QUERY_SCALE
    IS_BACKWARD: tl.constexpr,
    HAS_QUERY_SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # of head_dim
    BLOCK_HEADS: tl.constexpr,  # power of 2, at least HEADS
    BLOCK_KV_HEADS: tl.constexpr,  # power of 2, at least KV_HEADS
    BLOCK_HALF: tl.constexpr,  # power of 2, at least HALF
):
    """Forward: qkv is read, and query, key and value are written, the first two rotated. One program per token.

    Backward: the gradients of query, key and value are read, rotated by the negative angle, and written to that of qkv.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_HALF)
    cos = tl.load(cos_ptr + token * 2 * HALF + column, mask=column < HALF, other=0)[None]
    sin = tl.load(sin_ptr + token * 2 * HALF + column, mask=column < HALF, other=0)[None]
    scale = 1.0
    if HAS_QUERY_SCALE:
        scale = tl.load(query_scale_ptr + token)
    q_size: tl.constexpr = HEADS * 2 * HALF
    kv_size: tl.constexpr = KV_HEADS * 2 * HALF
    qkv_ptr += token * (q_size + 2 * kv_size)
    query_ptr += token * q_size
    key_ptr += token * kv_size
    value_ptr += token * kv_size
    offset = tl.arange(0, BLOCK_KV_HEADS * 2 * BLOCK_HALF)
    if IS_BACKWARD:
        _rotate_heads(query_ptr, qkv_ptr, cos, -sin, scale, HEADS, HALF, BLOCK_HEADS, BLOCK_HALF)
        _rotate_heads(key_ptr, qkv_ptr + q_size, cos, -sin, 1.0, KV_HEADS, HALF, BLOCK_KV_HEADS, BLOCK_HALF)
        value = tl.load(value_ptr + offset, mask=offset < kv_size)
        tl.store(qkv_ptr + q_size + kv_size + offset, value, mask=offset < kv_size)
    else:
        _rotate_heads(qkv_ptr, query_ptr, cos, sin, scale, HEADS, HALF, BLOCK_HEADS, BLOCK_HALF)
        _rotate_heads(qkv_ptr + q_size, key_ptr, cos, sin, 1.0, KV_HEADS, HALF, BLOCK_KV_HEADS, BLOCK_HALF)
        value = tl.load(qkv_ptr + q_size + kv_size + offset, mask=offset < kv_size)
        tl.store(value_ptr + offset, value, mask=offset < kv_size)


def rotary_forward(qkv: Tensor, tables: RotaryTables, q_size: int, kv_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim] of ``qkv``, rotated."""
    tokens, head_dim = tables.cos.shape
    query, key, value = (qkv.new_empty(tokens, size // head_dim, head_dim) for size in (q_size, kv_size, kv_size))
    _launch_rotary(qkv.contiguous(), query, key, value, tables, is_backward=False)
    return query, key, value


def rotary_backward(grad_query: Tensor, grad_key: Tensor, grad_value: Tensor, tables: RotaryTables) -> Tensor:
    """Return the gradient of ``qkv`` [tokens, q_size + 2 * kv_size], given those of ``rotary_forward``'s outputs."""
    grads = (grad_query, grad_key, grad_value)
    grad_qkv = grad_query.new_empty(grad_query.shape[0], sum(grad.shape[1] * grad.shape[2] for grad in grads))
    grad_query, grad_key, grad_value = (grad.contiguous() for grad in grads)
    _launch_rotary(grad_qkv, grad_query, grad_key, grad_value, tables, is_backward=True)
    return grad_qkv


def _launch_rotary(
    qkv: Tensor, query: Tensor, key: Tensor, value: Tensor, tables: RotaryTables, *, is_backward: bool
) -> None:
    cos, sin, query_scale = tables
    half = cos.shape[1] // 2
    has_query_scale = query_scale is not None
    _rotary_kernel[(qkv.shape[0],)](
        qkv,
        query,
        key,
        value,
        cos.contiguous(),
        sin.contiguous(),
        query_scale if has_query_scale else cos,
        is_backward,
        has_query_scale,
        query.shape[1],
        key.shape[1],
        half,
        *(triton.next_power_of_2(size) for size in (query.shape[1], key.shape[1], half)),
    )
