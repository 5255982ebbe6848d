"""What the result of a training run depends on: two runs with equal identities make the same weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from components import __version__
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.tokenized import TokenizedData
from components.finetune.validation import Validation

# Settings that say how a run is kept and watched, not what it computes.
WITHOUT_EFFECT = {
    "checkpoint_uri",
    "checkpoint_every_seconds",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "hang_timeout_seconds",
}


def identity(
    config: FinetuneConfig,
    data: TokenizedData,
    validation: Validation | None,
    encoder: Encoder,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Settings, data, base weights, arithmetic and release, as JSON values. Reads all weights: seconds for 5 GB."""
    return {
        "release": __version__,
        "settings": config.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "training_data": data.digest(),
        "val_data": validation.digest() if validation else None,
        "base_weights": _weights_digest(encoder),
        "arithmetic": f"{str(dtype).removeprefix('torch.')} on {encoder.device.type}",
    }


def _weights_digest(encoder: Encoder) -> str:
    found = hashlib.sha256()
    for name, weights in encoder.backbone.named_parameters():
        found.update(json.dumps([name, list(weights.shape)]).encode())
        found.update(weights.detach().float().cpu().contiguous().numpy())
    return found.hexdigest()
