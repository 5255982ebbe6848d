"""One layer of bidirectional Llama over packed texts, its backward pass written out.

Autograd would find the same gradients. Written out, the product that makes the gradient of a weight adds it to its
float32 sum at once, and what lies between the products takes as few passes over memory as it can.

RMSNorm: Zhang and Sennrich, 2019; rotary positions: Su et al., 2021; gated units: Shazeer, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from components.core.encoder.kernels.attention import attention_backward, attention_forward
from components.core.encoder.kernels.master_weights import add_gradients
from components.core.encoder.kernels.matmul import Products
from components.core.encoder.kernels.rms_norm import add_rms_norm, rms_norm_backward, rms_norm_forward
from components.core.encoder.kernels.rotary import Positions, rotate, rotate_back
from components.core.encoder.kernels.swiglu import gate as gated
from components.core.encoder.kernels.swiglu import gate_back


class LlamaLayer:
    """What all layers have in common: the ``epsilon`` of their norms, and how ``products`` are computed."""

    def __init__(self, epsilon: float, products: Products) -> None:
        self.epsilon, self.products = epsilon, products

    def __call__(
        self, hidden: Tensor, positions: Positions, bounds: Tensor, max_length: int, weights: Sequence[Tensor]
    ) -> Tensor:
        """[tokens, dimension] -> the same. ``weights``: as ``packed_llama`` lists those of a layer."""
        return _Layer.apply(self, hidden, positions, bounds, max_length, *weights)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layer: LlamaLayer,
        hidden: Tensor,
        positions: Positions,
        bounds: Tensor,
        max_length: int,
        *weights: Tensor,
    ) -> Tensor:
        attention_norm, q, k, v, o, mlp_norm, gate, up, down = weights
        products = layer.products
        normed = rms_norm_forward(hidden, attention_norm, layer.epsilon)
        # One product for three: joining the weights costs 0.1 % of it, and they keep their own names and gradients.
        (joined,) = products.each(normed, [torch.cat((q, k, v))])
        query, key, value = rotate(joined, positions, q.shape[0], k.shape[0])
        mixed, log_sum_exp = attention_forward(query, key, value, bounds, max_length)
        (attended,) = products.each(mixed.flatten(1), [o])
        middle, entered = add_rms_norm(hidden, attended, mlp_norm, layer.epsilon)
        # Two products, not one: the backward pass of one would have to join two gradients in memory first.
        gates, ups = products.each(entered, [gate, up])
        opened = gated(gates, ups)
        ctx.layer, ctx.weights, ctx.positions, ctx.max_length = layer, weights, positions, max_length
        ctx.save_for_backward(
            hidden, normed, query, key, value, mixed, log_sum_exp, middle, entered, gates, ups, opened, bounds
        )
        return products.onto(middle.clone(), opened, down)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attention_norm, q, k, v, o, mlp_norm, gate, up, down = ctx.weights
        layer, products = ctx.layer, ctx.layer.products
        hidden, normed, query, key, value, mixed, log_sum_exp, middle, entered, gates, ups, opened, bounds = (
            ctx.saved_tensors
        )
        gradient = gradient.contiguous()
        (of_opened,) = products.each(gradient, [down.t()])
        of_gates, of_ups = gate_back(of_opened, gates, ups)
        (of_entered,) = products.each(of_gates, [gate.t()])
        of_entered = products.onto(of_entered, of_ups, up.t())
        of_middle, of_mlp_norm = rms_norm_backward(of_entered, middle, mlp_norm, layer.epsilon, gradient)
        (of_mixed,) = products.each(of_middle, [o.t()])
        of_turned = attention_backward(
            of_mixed.view_as(mixed), query, key, value, mixed, log_sum_exp, bounds, ctx.max_length
        )
        of_joined = rotate_back(*of_turned, ctx.positions)
        (of_normed,) = products.each(of_joined, [torch.cat((q, k, v)).t()])
        of_hidden, of_attention_norm = rms_norm_backward(of_normed, hidden, attention_norm, layer.epsilon, of_middle)
        return (
            *(None, of_hidden, None, None, None),
            *(of_attention_norm, *add_gradients([q, k, v], of_joined, normed)),
            *(*add_gradients([o], of_middle, mixed.flatten(1)), of_mlp_norm),
            *add_gradients([gate], of_gates, entered),
            *add_gradients([up], of_ups, entered),
            *add_gradients([down], gradient, opened),
        )
