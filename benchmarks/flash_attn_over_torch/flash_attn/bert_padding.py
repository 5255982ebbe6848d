"""Removing and restoring padding, as transformers imports it from flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unpad_input(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """[batch, length, ...] -> tokens, their places, bounds (int32), longest, lengths."""
    lengths = mask.sum(dim=1, dtype=torch.int32)
    places = mask.flatten().nonzero().flatten()
    bounds = nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden.flatten(0, 1)[places], places, bounds, int(lengths.max()), lengths


def pad_input(hidden: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    """The reverse: tokens -> [batch, length, ...], zero where there was padding."""
    padded = hidden.new_zeros((batch * length, *hidden.shape[1:]))
    return padded.index_copy(0, places, hidden).view(batch, length, *hidden.shape[1:])
