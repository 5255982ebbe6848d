"""Types and constants that the kernels for GPUs share with the functions that choose between GPU and CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8_DTYPE).max


class RotaryTables(NamedTuple):
    """Rotations of the tokens' positions.

    Attributes:
        cos, sin: float32 [tokens, head_dim], both halves of a row equal.
        query_scale: float32 [tokens, 1, 1], by which queries are multiplied; None where that is 1.
    """

    cos: Tensor
    sin: Tensor
    query_scale: Tensor | None
