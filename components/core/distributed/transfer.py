"""From main memory to a GPU without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: Tensor | np.ndarray | Sequence[Any], device: torch.device) -> Tensor:
    """``values`` as a tensor on ``device``; its type is that of ``torch.as_tensor``."""
    tensor = torch.as_tensor(values)
    # From pinned memory the copy does not wait for the kernels already queued.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
