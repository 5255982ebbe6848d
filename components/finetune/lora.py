"""Low-rank adaptation through peft: a few weights are trained, the result is a model like any other."""

from __future__ import annotations

from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from components.core.encoder.model import Encoder


def add_lora(encoder: Encoder, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze the weights and add trainable ones of ``rank`` to every linear layer (Hu et al. 2021, arXiv 2106.09685).

    The additions are random by ``seed`` and change nothing at first. There is no dropout.
    """
    torch.manual_seed(seed)
    # peft computes with any number, although it declares an int.
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules="all-linear", lora_dropout=0.0, bias="none")
    encoder.backbone = cast(PreTrainedModel, get_peft_model(encoder.backbone, config))


def merge_lora(encoder: Encoder) -> None:
    """Add what was trained to the weights; nothing when there is no LoRA."""
    if isinstance(encoder.backbone, PeftModel):
        encoder.backbone = encoder.backbone.merge_and_unload()
