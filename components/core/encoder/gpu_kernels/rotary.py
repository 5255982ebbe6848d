"""Kernels of ``core.encoder.kernels.rotary``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from components.core.encoder.kernels.rotary import Positions


@triton.jit
def _turn(
    source, target, cos, sin, scale, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One token's heads: ``cos``, ``sin`` of [HALF] angles."""
    head = tl.arange(0, ROWS)[:, None]
    place = tl.arange(0, BLOCK)[None]
    inside = (head < HEADS) & (place < HALF)
    place = head * 2 * HALF + place
    first = tl.load(source + place, mask=inside, other=0).to(tl.float32)
    second = tl.load(source + place + HALF, mask=inside, other=0).to(tl.float32)
    kind = target.dtype.element_ty
    tl.store(target + place, ((first * cos - second * sin) * scale).to(kind), mask=inside)
    tl.store(target + place + HALF, ((second * cos + first * sin) * scale).to(kind), mask=inside)


@triton.jit
def _rotate(
    joined,
    query,
    key,
    value,
    cosines,
    sines,
    scales,
    back: tl.constexpr,
    scaled: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES_ROWS: tl.constexpr,
    KEYS_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program one token, from ``joined`` to ``query``, ``key`` and ``value`` or back."""
    token = tl.program_id(0).to(tl.int64)
    angle = tl.arange(0, BLOCK)
    cos = tl.load(cosines + token * 2 * HALF + angle, mask=angle < HALF, other=0)[None]
    sin = tl.load(sines + token * 2 * HALF + angle, mask=angle < HALF, other=0)[None]
    scale = 1.0
    if scaled:
        scale = tl.load(scales + token)
    queries: tl.constexpr = QUERIES * 2 * HALF
    keys: tl.constexpr = KEYS * 2 * HALF
    joined += token * (queries + 2 * keys)
    query += token * queries
    key += token * keys
    value += token * keys
    copied = tl.arange(0, KEYS_ROWS * 2 * BLOCK)
    if back:
        _turn(query, joined, cos, -sin, scale, QUERIES, HALF, QUERIES_ROWS, BLOCK)
        _turn(key, joined + queries, cos, -sin, 1.0, KEYS, HALF, KEYS_ROWS, BLOCK)
        copy = tl.load(value + copied, mask=copied < keys)
        tl.store(joined + queries + keys + copied, copy, mask=copied < keys)
    else:
        _turn(joined, query, cos, sin, scale, QUERIES, HALF, QUERIES_ROWS, BLOCK)
        _turn(joined + queries, key, cos, sin, 1.0, KEYS, HALF, KEYS_ROWS, BLOCK)
        copy = tl.load(joined + queries + keys + copied, mask=copied < keys)
        tl.store(value + copied, copy, mask=copied < keys)


def rotate(joined: Tensor, positions: Positions, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """``rotary.rotate``."""
    tokens, size = positions[0].shape
    query, key, value = (joined.new_empty(tokens, width // size, size) for width in (queries, keys, keys))
    _launch_rotate(joined.contiguous(), query, key, value, positions, back=False)
    return query, key, value


def rotate_back(query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
    """``rotary.rotate_back``."""
    joined = query.new_empty(query.shape[0], sum(part.shape[1] * part.shape[2] for part in (query, key, value)))
    _launch_rotate(joined, query.contiguous(), key.contiguous(), value.contiguous(), positions, back=True)
    return joined


def _launch_rotate(
    joined: Tensor, query: Tensor, key: Tensor, value: Tensor, positions: Positions, *, back: bool
) -> None:
    cos, sin, scale = positions
    half = cos.shape[1] // 2
    scaled = scale is not None
    _rotate[(joined.shape[0],)](
        joined,
        query,
        key,
        value,
        cos.contiguous(),
        sin.contiguous(),
        scale if scaled else cos,
        back,
        scaled,
        query.shape[1],
        key.shape[1],
        half,
        *(triton.next_power_of_2(count) for count in (query.shape[1], key.shape[1], half)),
    )
