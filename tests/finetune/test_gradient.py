"""Packed and padded texts give the same gradient, for both losses, however the batch is cut up."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from components.core.encoder.checkpoint import load_checkpoint
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.gradients.packed_gradient import PackedGradient
from components.finetune.gradients.padded_gradient import PaddedGradient
from tests.exported import Exported

pytestmark = pytest.mark.slow

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
    kind(own, config, torch.float32, **options).backward_pass(batch, 1 / QUERIES)
    return torch.cat([weights.grad.flatten() for weights in own.backbone.parameters() if weights.grad is not None])


@pytest.mark.parametrize("in_batch", [False, True], ids=["recipe's loss", "in-batch negatives"])
@pytest.mark.parametrize("dimensions", [[], [8, 24]], ids=["whole vectors", "cut vectors too"])
@pytest.mark.parametrize("capacity", [40, 100_000], ids=["in parts", "at once"])
def test_packed_and_padded_gradients_agree(
    encoder: Encoder, batch: Batch, in_batch: bool, capacity: int, dimensions: list[int]
) -> None:
    config = FinetuneConfig(
        in_batch_negatives=in_batch,
        temperature=0.1,
        packed_batch_tokens=capacity,
        matryoshka_dimensions=dimensions,
    )
    padded = gradient(PaddedGradient, encoder, batch, config)
    packed = gradient(PackedGradient, encoder, batch, config, compiled=False)
    assert padded.norm() > 0
    assert (packed - padded).norm() < 1e-5 * padded.norm()


def test_the_computing_copy_follows_the_trained_weights(encoder: Encoder, batch: Batch) -> None:
    own = Encoder(copy.deepcopy(encoder.backbone), encoder.tokenizer, encoder.config)
    config = FinetuneConfig(temperature=0.1)
    packed = PackedGradient(own, config, torch.float32, compiled=False)
    before = packed.backward_pass(batch, 1.0)
    with torch.no_grad():
        for weights in own.backbone.parameters():
            weights -= 0.05 * weights.grad / weights.grad.norm().clamp(min=1e-9)
    packed.refresh_weights()
    after = packed.backward_pass(batch, 1.0)
    padded = PaddedGradient(own, config, torch.float32).backward_pass(batch, 1.0)
    assert after < before
    assert after == pytest.approx(padded.item(), rel=1e-4)


def test_vectors_are_those_of_the_encoder_in_their_order(encoder: Encoder, batch: Batch) -> None:
    """While nothing is trained; packed texts, padded ones, and one at a time."""
    config = FinetuneConfig(packed_batch_tokens=64)
    with torch.no_grad():
        expected = torch.cat([encoder(*encoder.batch([ids])) for ids in batch.passages])
    for kind, options in ((PaddedGradient, {}), (PackedGradient, {"compiled": False})):
        found = kind(encoder, config, torch.float32, **options).encode(batch.passages)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_less_memory_gives_the_same_gradient_until_there_is_no_less(encoder: Encoder, batch: Batch) -> None:
    config = FinetuneConfig(temperature=0.1, packed_batch_tokens=200, query_max_length=30, passage_max_length=40)
    own = Encoder(copy.deepcopy(encoder.backbone), encoder.tokenizer, encoder.config)
    packed = PackedGradient(own, config, torch.float32, compiled=False)
    found = []
    for expected in ("100 tokens", "50 tokens", "25 tokens", None):
        packed.backward_pass(batch, 1 / QUERIES)
        found.append(torch.cat([w.grad.flatten() for w in own.backbone.parameters() if w.grad is not None]))
        packed.discard()
        assert all(w.grad is None for w in own.backbone.parameters())
        assert packed.halve_passes() == expected
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-5 * found[0].norm()
