"""Attention within each of several texts that lie side by side, without padding."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_SIZES = (64, 128)  # of heads, for which flash-attn-4 was measured or is known to be made
_only_torch = False
_log = logging.getLogger(__name__)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int) -> Tensor:
    """Every token attends to all tokens of its own text.

    ``query``: [tokens, heads, size]; ``key``, ``value``: [tokens, kv_heads, size], each shared by heads / kv_heads
    query heads; ``bounds``: int32 [texts + 1]. Returns the shape of ``query``. bfloat16 or float16 on a GPU runs
    FlashAttention: version 4 where the package flash-attn-4 is installed and the GPU is a Hopper or newer, else version
    2 (Dao, 2023, arXiv 2307.08691) as compiled into torch. Everything else is a masked product, for tests and small
    inputs.
    """
    return attention_forward(query, key, value, bounds, max_length)[0]


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int
) -> tuple[Tensor, Tensor]:
    """``packed_attention`` for those who write their own backward pass: its result, and what that pass needs of it."""
    if _flashes(query):
        return _flash(query, key, value, bounds, max_length)
    return _masked(query, key, value, bounds), query.new_empty(0)


def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed: Tensor,
    log_sum_exp: Tensor,
    bounds: Tensor,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``query``, ``key``, ``value``; ``mixed``, ``log_sum_exp``: of ``attention_forward``.

    The same bits every time: FlashAttention would add up the gradient of queries in whatever order its blocks end.
    """
    if _flashes(query):
        return _flash_backward(gradient, query, key, value, mixed, log_sum_exp, bounds, max_length)
    with torch.enable_grad():
        inputs = [part.detach().requires_grad_() for part in (query, key, value)]
        again = _masked(*inputs, bounds)
    return torch.autograd.grad(again, inputs, gradient)


def _flashes(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def _masked(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    tokens = query.shape[0]
    text = torch.bucketize(torch.arange(tokens, device=query.device), bounds[1:], right=True)
    same_text = text[:, None] == text[None, :]
    heads_first = [part.transpose(0, 1)[None] for part in (query, key, value)]
    mixed = nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=same_text, enable_gqa=query.shape[1] != key.shape[1]
    )
    return mixed[0].transpose(0, 1)


@contextlib.contextmanager
def only_torch() -> Iterator[None]:
    """Inside, attention runs the kernels compiled into torch whatever is installed: to compare the two."""
    global _only_torch
    _only_torch = True
    try:
        yield
    finally:
        _only_torch = False


def _newer(query: Tensor) -> ModuleType | None:
    """The functions of flash-attn-4 where they are to be had and serve heads of this size."""
    return None if _only_torch or query.shape[-1] not in _SIZES else _flash_attention_4()


@functools.cache
def _flash_attention_4() -> ModuleType | None:
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        return None
    if torch.cuda.get_device_capability() < (9, 0):
        return None
    try:
        return importlib.import_module("flash_attn.cute.interface")
    except (ImportError, OSError, RuntimeError) as error:  # its own libraries raise the last where one is missing
        _log.warning("flash-attn-4 is installed and cannot be used (%s): attention runs torch's own kernels", error)
        return None


# torch.nn.attention.varlen calls the same kernels, but takes grouped key heads only from torch 2.12 on.
@torch.library.custom_op("nemotron_embed::flash", mutates_args=())
def _flash(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    newer = _newer(query)
    if newer is not None:
        mixed, log_sum_exp, *_ = newer._flash_attn_fwd(
            query, key, value, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=max_length,
            max_seqlen_k=max_length, return_lse=True,
        )  # fmt: skip
        return mixed, log_sum_exp
    mixed, log_sum_exp, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, max_length, max_length, 0.0, False, False
    )
    return mixed, log_sum_exp


@_flash.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, max_length: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


@torch.library.custom_op("nemotron_embed::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed: Tensor,
    log_sum_exp: Tensor,
    bounds: Tensor,
    max_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    newer = _newer(query)
    if newer is not None:
        return newer._flash_attn_bwd(
            query, key, value, mixed, gradient.contiguous(), log_sum_exp, cu_seqlens_q=bounds, cu_seqlens_k=bounds,
            max_seqlen_q=max_length, max_seqlen_k=max_length, deterministic=True,
        )[:3]  # fmt: skip
    # No dropout: the state of the random generator is asked for and not used.
    unused = torch.empty(0, device=query.device)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    with _deterministic():
        return torch.ops.aten._flash_attention_backward(
            gradient.contiguous(), query, key, value, mixed, log_sum_exp, bounds, bounds, max_length, max_length, 0.0,
            False, state, unused,
        )  # fmt: skip


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Inside, torch's kernels add up in the same order every time.

    Not the whole training: other operations of it, which are deterministic as they are, would be refused.
    """
    mode, memory = torch.get_deterministic_debug_mode(), torch.utils.deterministic
    fills, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fills


@_flash_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, ctx.max_length = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_flash_backward(gradient, *ctx.saved_tensors, ctx.max_length), None, None


_flash.register_autograd(_backward, setup_context=_save)
