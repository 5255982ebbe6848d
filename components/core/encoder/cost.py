"""Floating-point operations: how many a model takes per token, and how many the chip could do in a second."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

# Dense bfloat16 TFLOP/s of the data sheets, without sparsity; the first name that the device's contains counts.
_PEAK = (
    ("B200", 2250.0), ("H200", 989.0), ("GH200", 989.0), ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0),
    ("A100", 312.0), ("A800", 312.0), ("L40S", 362.0), ("A40", 150.0), ("A10", 125.0), ("L4", 121.0),
)  # fmt: skip
_MEASURED_SIZE, _MEASURED_TIMES = 4096, 20


def flops_per_token(backbone: PreTrainedModel, lengths: Sequence[int]) -> float:
    """Operations of one forward pass per token of texts of these ``lengths``.

    Two per weight of every matrix product and token, and the attention of each token to its whole text, twice. A
    backward pass costs twice as much again.
    """
    config = backbone.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    attended = sum(length * length for length in lengths) / max(1, sum(lengths))
    return 2 * _matrix_weights(backbone) + 4 * config.num_hidden_layers * heads * size * attended


def peak_flops(device: torch.device) -> tuple[float, str] | None:
    """bfloat16 operations per second of the GPU, and where the figure is from; None on a CPU.

    A GPU that is not in the table is measured, in a fraction of a second.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, teraflops in _PEAK:
        if part in name:
            return teraflops * 1e12, f"data sheet of {part}"
    return _measured(device), f"measured on {name}"


def _matrix_weights(backbone: PreTrainedModel) -> int:
    """Weights of the linear layers, BERT's unused pooler left out. Embeddings are looked up, not multiplied."""
    linear = [m for name, m in backbone.named_modules() if isinstance(m, nn.Linear) and not name.startswith("pooler")]
    return sum(module.weight.numel() for module in linear)


def _measured(device: torch.device) -> float:
    left, right = (torch.randn(_MEASURED_SIZE, _MEASURED_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    left @ right
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(_MEASURED_TIMES):
        left @ right
    torch.cuda.synchronize(device)
    return _MEASURED_TIMES * 2 * _MEASURED_SIZE**3 / (time.perf_counter() - started)
