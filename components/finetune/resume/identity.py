"""What the result of a training run depends on.

Runs with equal identities make the same weights, up to rounding: a state may be continued with another number of GPUs
or another reduction, whose sums differ in the last bits.
"""

from __future__ import annotations

from typing import Any

import torch

from components import __version__
from components.finetune.component import FinetuneConfig
from components.finetune.data.tokenized import TokenizedData
from components.finetune.validation import Validation


def identity(
    config: FinetuneConfig,
    data: TokenizedData,
    validation: Validation | None,
    base_weights: str,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """Settings, data, base weights (their digest), arithmetic and release, as JSON values."""
    return {
        "release": __version__,
        "settings": config.dump_what_affects_result(),
        "training_data": data.digest(),
        "val_data": validation.digest() if validation else None,
        "base_weights": base_weights,
        "arithmetic": f"{str(dtype).removeprefix('torch.')} on {device.type}",
    }
