"""One layer of bidirectional Llama over packed texts, with its backward pass written out.

Autograd would compute the same gradients. Written out, the product that makes the gradient of a weight adds it to the
float32 gradient of the master weight at once, and what lies between the products takes as few passes over memory as it
can.

RMSNorm: Zhang and Sennrich, 2019; rotary positions: Su et al., 2021; SwiGLU: Shazeer, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.core.encoder.kernel_types import RotaryTables
from components.core.encoder.kernels.attention import AttentionBackend, attention_backward, attention_forward
from components.core.encoder.kernels.master_weights import accumulate_weight_grad
from components.core.encoder.kernels.matmul import Matmul
from components.core.encoder.kernels.rms_norm import add_rms_norm_forward, rms_norm_backward, rms_norm_forward
from components.core.encoder.kernels.rotary import rotary_backward, rotary_forward
from components.core.encoder.kernels.swiglu import swiglu, swiglu_backward


@dataclass(frozen=True)
class LlamaLayerOptions:
    """What all layers of a model have in common: the epsilon of RMSNorm and how products and attention are computed."""

    epsilon: float
    matmul: Matmul
    attention_backend: AttentionBackend = "auto"


class LlamaLayerWeights(NamedTuple):
    """Weights of a layer: norms [dimension], projections [out, in]."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class LlamaLayerGrads(NamedTuple):
    """Gradients of ``LlamaLayerWeights``; None where they were added to those of the master weights instead."""

    attention_norm: Tensor
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    o: Tensor | None
    mlp_norm: Tensor
    gate: Tensor | None
    up: Tensor | None
    down: Tensor | None


class LlamaLayer(torch.autograd.Function):
    """A transformer layer, [tokens, dimension] -> [tokens, dimension].

    ``LlamaLayer.apply(options, residual, rotary, cu_seqlens, max_length, *weights)``: ``cu_seqlens`` is int32
    [texts + 1], ``weights`` are ``LlamaLayerWeights``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        options: LlamaLayerOptions,
        residual: Tensor,
        rotary: RotaryTables,
        cu_seqlens: Tensor,
        max_length: int,
        *weights: Tensor,
    ) -> Tensor:
        w, matmul = LlamaLayerWeights(*weights), options.matmul
        attn_in = rms_norm_forward(residual, w.attention_norm, options.epsilon)
        # One product for three: joining the weights costs 0.1 % of it, and they keep their own names and gradients.
        qkv = matmul.linear(attn_in, torch.cat((w.q, w.k, w.v)))
        query, key, value = rotary_forward(qkv, rotary, w.q.shape[0], w.k.shape[0])
        attn_out, log_sum_exp = attention_forward(query, key, value, cu_seqlens, max_length, options.attention_backend)
        projected = matmul.linear(attn_out.flatten(1), w.o)
        mlp_residual, mlp_in = add_rms_norm_forward(residual, projected, w.mlp_norm, options.epsilon)
        # Two products, not one: the backward pass of one would have to join two gradients in memory first.
        gate, up = matmul.linear_pair(mlp_in, w.gate, w.up)
        activation = swiglu(gate, up)
        ctx.options, ctx.weights, ctx.rotary, ctx.max_length = options, w, rotary, max_length
        ctx.save_for_backward(
            residual, attn_in, query, key, value, attn_out, log_sum_exp, mlp_residual, mlp_in, gate, up, activation,
            cu_seqlens,
        )  # fmt: skip
        return matmul.linear_add(mlp_residual.clone(), activation, w.down)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        w, options, matmul = ctx.weights, ctx.options, ctx.options.matmul
        (
            residual, attn_in, query, key, value, attn_out, log_sum_exp, mlp_residual, mlp_in, gate, up, activation,
            cu_seqlens,
        ) = ctx.saved_tensors  # fmt: skip
        grad_out = grad_out.contiguous()

        grad_activation = matmul.linear(grad_out, w.down.t())
        grad_gate, grad_up = swiglu_backward(grad_activation, gate, up)
        grad_mlp_in = matmul.linear(grad_gate, w.gate.t())
        grad_mlp_in = matmul.linear_add(grad_mlp_in, grad_up, w.up.t())
        grad_mlp_residual, grad_mlp_norm = rms_norm_backward(
            grad_mlp_in, mlp_residual, w.mlp_norm, options.epsilon, grad_out
        )

        grad_attn_out = matmul.linear(grad_mlp_residual, w.o.t())
        grad_query, grad_key, grad_value = attention_backward(
            grad_attn_out.view_as(attn_out), query, key, value, attn_out, log_sum_exp, cu_seqlens, ctx.max_length,
            options.attention_backend,
        )  # fmt: skip
        grad_qkv = rotary_backward(grad_query, grad_key, grad_value, ctx.rotary)
        grad_attn_in = matmul.linear(grad_qkv, torch.cat((w.q, w.k, w.v)).t())
        grad_residual, grad_attention_norm = rms_norm_backward(
            grad_attn_in, residual, w.attention_norm, options.epsilon, grad_mlp_residual
        )

        grad_q, grad_k, grad_v = accumulate_weight_grad([w.q, w.k, w.v], grad_qkv, attn_in)
        (grad_o,) = accumulate_weight_grad([w.o], grad_mlp_residual, attn_out.flatten(1))
        (grad_gate_weight,) = accumulate_weight_grad([w.gate], grad_gate, mlp_in)
        (grad_up_weight,) = accumulate_weight_grad([w.up], grad_up, mlp_in)
        (grad_down,) = accumulate_weight_grad([w.down], grad_out, activation)
        grads = LlamaLayerGrads(
            attention_norm=grad_attention_norm,
            q=grad_q,
            k=grad_k,
            v=grad_v,
            o=grad_o,
            mlp_norm=grad_mlp_norm,
            gate=grad_gate_weight,
            up=grad_up_weight,
            down=grad_down,
        )
        return None, grad_residual, None, None, None, *grads
