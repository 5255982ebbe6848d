"""What the result of a training run depends on: two runs with equal identities make the same weights."""

from __future__ import annotations

from typing import Any

import torch

from components import __version__
from components.finetune.component import FinetuneConfig
from components.finetune.data.tokenized import TokenizedData
from components.finetune.validation import Validation

# Settings that say how a run is kept and watched and where it runs, not what it computes: a state may be continued with
# another number of GPUs, whose sums differ in the last bits.
WITHOUT_EFFECT = {
    "optimizer_backend",
    "checkpoint_uri",
    "checkpoint_every_seconds",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "hang_timeout_seconds",
    "tensorboard_uri",
    "num_processes",
    "parallelism",
    "gradient_reduction",
    "trainer",
    "num_nodes",
    "gpus_per_node",
    "trainjob_runtime",
    "trainjob_image",
    "trainjob_namespace",
}


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
        "settings": config.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "training_data": data.digest(),
        "val_data": validation.digest() if validation else None,
        "base_weights": base_weights,
        "arithmetic": f"{str(dtype).removeprefix('torch.')} on {device.type}",
    }
