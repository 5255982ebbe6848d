"""SwiGLU, the gated unit with SiLU (Shazeer, 2020, arXiv 2002.05202), forward and backward; computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.gpu import load_gpu_kernels


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, where ``silu(x) = x * sigmoid(x)``.

    Args:
        gate: [tokens, intermediate], any floating-point dtype.
        up: Same shape and dtype as ``gate``.

    Returns:
        [tokens, intermediate] in the dtype of ``gate``.
    """
    if gate.is_cuda:
        return load_gpu_kernels().swiglu(gate, up)
    return (nn.functional.silu(gate.float()) * up).to(gate.dtype)


def swiglu_backward(grad_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``gate`` and ``up``, given that of ``swiglu``'s output.

    With ``s = sigmoid(gate)``: ``grad_gate = grad_out * up * s * (1 + gate * (1 - s))`` and
    ``grad_up = grad_out * gate * s``. All tensors: [tokens, intermediate].
    """
    if gate.is_cuda:
        return load_gpu_kernels().swiglu_backward(grad_out, gate, up)
    gate_float, grad_out = gate.float(), grad_out.float()
    sigmoid = torch.sigmoid(gate_float)
    grad_gate = grad_out * up * sigmoid * (1 + gate_float * (1 - sigmoid))
    return grad_gate.to(gate.dtype), (grad_out * gate_float * sigmoid).to(up.dtype)
