"""Packed and padded texts give the same gradient, for both losses, however the batch is cut up."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from components.core.encoder.checkpoint import load_checkpoint
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.gradient import Batch, PackedGradient, PaddedGradient
from tests.conftest import Exported

QUERIES, PASSAGES = 6, 7


@pytest.fixture(scope="module")
def encoder(llama: Exported) -> Encoder:
    return load_checkpoint(llama.checkpoint, dtype=torch.float32)


@pytest.fixture(scope="module")
def batch(encoder: Encoder) -> Batch:
    """Passages repeat among the queries, and some answer a query whose positive is another one."""
    draw = random.Random(0)

    def texts(count: int, longest: int) -> list[list[int]]:
        size = len(encoder.tokenizer)
        return [[draw.randrange(size) for _ in range(draw.randint(3, longest))] for _ in range(count)]

    slots = [draw.sample(range(PASSAGES), 3) for _ in range(QUERIES)]
    known = [{own[0], *draw.sample(range(PASSAGES), 1)} for own in slots]
    used = sorted({row for own in slots for row in own})
    assert used == list(range(PASSAGES))
    return Batch(texts(QUERIES, 12), texts(PASSAGES, 40), slots, known)


def gradient(kind: type, encoder: Encoder, batch: Batch, config: FinetuneConfig, **options: bool) -> torch.Tensor:
    own = Encoder(copy.deepcopy(encoder.backbone), encoder.tokenizer, encoder.config)
    kind(own, config, torch.float32, **options).add(batch, 1 / QUERIES)
    return torch.cat([weights.grad.flatten() for weights in own.backbone.parameters() if weights.grad is not None])


@pytest.mark.parametrize("in_batch", [False, True], ids=["recipe's loss", "in-batch negatives"])
@pytest.mark.parametrize("capacity", [40, 100_000], ids=["in parts", "at once"])
def test_packed_and_padded_gradients_agree(encoder: Encoder, batch: Batch, in_batch: bool, capacity: int) -> None:
    config = FinetuneConfig(in_batch_negatives=in_batch, temperature=0.1, packed_batch_tokens=capacity)
    padded = gradient(PaddedGradient, encoder, batch, config)
    packed = gradient(PackedGradient, encoder, batch, config, compiled=False)
    assert padded.norm() > 0
    assert (packed - padded).norm() < 1e-5 * padded.norm()


def test_the_computing_copy_follows_the_trained_weights(encoder: Encoder, batch: Batch) -> None:
    own = Encoder(copy.deepcopy(encoder.backbone), encoder.tokenizer, encoder.config)
    config = FinetuneConfig(temperature=0.1)
    packed = PackedGradient(own, config, torch.float32, compiled=False)
    before = packed.add(batch, 1.0)
    with torch.no_grad():
        for weights in own.backbone.parameters():
            weights -= 0.05 * weights.grad / weights.grad.norm().clamp(min=1e-9)
    packed.weights_changed()
    after = packed.add(batch, 1.0)
    padded = PaddedGradient(own, config, torch.float32).add(batch, 1.0)
    assert after < before
    assert after == pytest.approx(padded.item(), rel=1e-4)
