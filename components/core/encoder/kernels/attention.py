"""Attention within each of several texts that are packed side by side, without padding."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

# Of heads, for which flash-attn-4 was measured or is known to be compiled.
_FLASH_ATTENTION_4_HEAD_DIMS = (64, 128)
AttentionBackend = Literal["auto", "torch"]
"""``auto``: flash-attn-4 where it is installed and serves the GPU, else FlashAttention-2 as compiled into torch;
``torch``: always the latter. On a CPU and in float32 both are a masked product."""
_log = logging.getLogger(__name__)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Return attention in which every token attends to all tokens of its own text; differentiable by autograd.

    bfloat16 or float16 on a GPU runs FlashAttention: version 4 where the package flash-attn-4 is installed and the GPU
    is a Hopper or newer, else version 2 (Dao, 2023, arXiv 2307.08691) as compiled into torch. Everything else is a
    masked product, for tests and small inputs.

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim], each head shared by heads / kv_heads query heads.
        value: Like ``key``.
        cu_seqlens: int32 [texts + 1]; text i is tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``.
        max_length: No text is longer.
        backend: Which implementation of FlashAttention runs.

    Returns:
        [tokens, heads, head_dim] in the dtype of ``query``.
    """
    return attention_forward(query, key, value, cu_seqlens, max_length, backend)[0]


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, backend: AttentionBackend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the output of ``packed_attention`` and what ``attention_backward`` needs of it.

    The second tensor is the log-sum-exp of the scores, float32 [heads, tokens]; empty where the backward pass computes
    it again.
    """
    if _runs_flash_attention(query):
        return _flash(query, key, value, cu_seqlens, max_length, backend)
    return _masked_attention(query, key, value, cu_seqlens), query.new_empty(0)


def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_out: Tensor,
    log_sum_exp: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    backend: AttentionBackend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``query``, ``key`` and ``value``, in their shapes and dtypes.

    ``attn_out`` and ``log_sum_exp`` are what ``attention_forward`` returned; ``grad_out`` is the gradient of
    ``attn_out``. The bits are the same every time: without its deterministic mode FlashAttention would add up the
    gradient of queries in whatever order its blocks end.
    """
    if _runs_flash_attention(query):
        return _flash_backward(grad_out, query, key, value, attn_out, log_sum_exp, cu_seqlens, max_length, backend)
    with torch.enable_grad():
        inputs = [part.detach().requires_grad_() for part in (query, key, value)]
        recomputed = _masked_attention(inputs[0], inputs[1], inputs[2], cu_seqlens)
    grad_query, grad_key, grad_value = torch.autograd.grad(recomputed, inputs, grad_out)
    return grad_query, grad_key, grad_value


def _runs_flash_attention(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
    tokens = query.shape[0]
    text = torch.bucketize(torch.arange(tokens, device=query.device), cu_seqlens[1:], right=True)
    same_text = text[:, None] == text[None, :]
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    attn_out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=same_text, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attn_out[0].transpose(0, 1)


def _select_flash_attention_4(query: Tensor, backend: str) -> ModuleType | None:
    """Return the functions of flash-attn-4 where it may be used, is installed and serves heads of this size."""
    if backend == "torch" or query.shape[-1] not in _FLASH_ATTENTION_4_HEAD_DIMS:
        return None
    return _import_flash_attention_4()


@functools.cache
def _import_flash_attention_4() -> ModuleType | None:
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
def _flash(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, backend: str
) -> tuple[Tensor, Tensor]:
    flash_attention_4 = _select_flash_attention_4(query, backend)
    if flash_attention_4 is not None:
        attn_out, log_sum_exp, *_ = flash_attention_4._flash_attn_fwd(
            query, key, value, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=max_length,
            max_seqlen_k=max_length, return_lse=True,
        )  # fmt: skip
        return attn_out, log_sum_exp
    attn_out, log_sum_exp, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seqlens, cu_seqlens, max_length, max_length, 0.0, False, False
    )
    return attn_out, log_sum_exp


@_flash.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


@torch.library.custom_op("nemotron_embed::flash_backward", mutates_args=())
def _flash_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_out: Tensor,
    log_sum_exp: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    flash_attention_4 = _select_flash_attention_4(query, backend)
    if flash_attention_4 is not None:
        return flash_attention_4._flash_attn_bwd(
            query, key, value, attn_out, grad_out.contiguous(), log_sum_exp, cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens, max_seqlen_q=max_length, max_seqlen_k=max_length, deterministic=True,
        )[:3]  # fmt: skip
    # No dropout: the state of the random generator is asked for and not used.
    unused = torch.empty(0, device=query.device)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    with _deterministic():
        return torch.ops.aten._flash_attention_backward(
            grad_out.contiguous(), query, key, value, attn_out, log_sum_exp, cu_seqlens, cu_seqlens, max_length,
            max_length, 0.0, False, state, unused,
        )  # fmt: skip


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Make torch's kernels add up in the same order every time, inside this context only.

    The mode is not set for the whole training: it would refuse other operations, which are deterministic as they are.
    """
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    fills, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fills


@_flash_backward.register_fake
def _(
    grad_out: Tensor,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, ctx.max_length, ctx.backend = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_flash_backward(grad_out, *ctx.saved_tensors, ctx.max_length, ctx.backend), None, None, None


_flash.register_autograd(_backward, setup_context=_setup_context)
