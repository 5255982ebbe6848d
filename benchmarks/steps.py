"""One optimizer step, as each contestant makes it. What is yielded makes a step and returns its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from benchmarks.batch import NEGATIVES, TEMPERATURE, Batch, explicit_loss, in_batch_loss
from benchmarks.peers import flat, liger, padded, sentence_transformer
from benchmarks.workload import Shape, llama, text
from components.core.encoder.kernels.attention import AttentionBackend
from components.core.encoder.kernels.master_weights import ComputeCopy
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.packed.packing import balance_bins
from components.core.encoder.training.contrastive import contrastive_backward

Step = Callable[[], float]


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def recipe(shape: Shape, device: torch.device, batch: Batch, *, micro: int = 4) -> Iterator[Step]:
    """NeMo Automodel's loop: queries and passages apart, padded to the longest and a multiple of eight."""
    model = llama(shape, device, torch.bfloat16).train()
    optimizer = adamw(model)

    def step() -> float:
        total = 0.0
        for start in range(0, len(batch.groups), micro):
            groups = batch.groups[start : start + micro]
            query = padded(model, [batch.ids[group[0]] for group in groups], 8)
            passage = padded(model, [batch.ids[row] for group in groups for row in group[1:]], 8)
            vectors = torch.cat((query[:, None], passage.view(len(groups), -1, passage.shape[-1])), dim=1)
            loss = explicit_loss(vectors) / len(batch.groups)
            loss.backward()
            total += loss.detach()
        update(model, optimizer)
        return float(total)

    yield step


@contextlib.contextmanager
def sentence_transformers(
    shape: Shape,
    device: torch.device,
    batch: Batch,
    *,
    micro: int,
    cached: bool,
    attention: str,
    fused: bool,
    tokenizes: bool = False,
) -> Iterator[Step]:
    """Its in-batch loss over ``micro`` queries at a time, or all of them through GradCache in pieces of ``micro``.

    ``tokenizes``: in every step, as its trainer's collator does.
    """
    model = llama(shape, device, torch.bfloat16, attention).train()
    with liger(model) if fused else contextlib.nullcontext():
        contestant = sentence_transformer(model, shape)
        kind = CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss
        loss_of = kind(contestant, scale=1 / TEMPERATURE, **({"mini_batch_size": micro} if cached else {}))
        optimizer = adamw(model)
        size = len(batch.groups) if cached else micro
        columns = range(2 + NEGATIVES)
        parts = [batch.groups[start : start + size] for start in range(0, len(batch.groups), size)]

        def tokenized() -> list[list[dict[str, Any]]]:
            return [
                [contestant.preprocess([text(batch.ids[group[n]]) for group in part]) for n in columns]
                for part in parts
            ]

        ready = tokenized()

        def step() -> float:
            total = 0.0
            for features in tokenized() if tokenizes else ready:
                moved = [{name: _move(value, device) for name, value in column.items()} for column in features]
                loss = loss_of(moved, None) * size / len(batch.groups)
                loss.backward()
                total += loss.detach()
            update(model, optimizer)
            return float(total)

        yield step


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def hand_loop(shape: Shape, device: torch.device, batch: Batch, *, capacity: int = 16384) -> Iterator[Step]:
    """transformers' model, FA2 without padding, liger, float32 masters, groups in even bins: a well-informed user."""
    master = llama(shape, device, torch.float32, "flash_attention_2")
    copy = ComputeCopy(master)
    optimizer = adamw(master)
    copy.module.train()
    sizes = [sum(batch.lengths[row] for row in group) for group in batch.groups]
    with liger(copy.module):

        def step() -> float:
            total = 0.0
            for places in balance_bins(sizes, capacity):
                rows = [row for place in places for row in batch.groups[place]]
                vectors = flat(copy.module, [batch.ids[row] for row in rows]).view(len(places), 2 + NEGATIVES, -1)
                loss = explicit_loss(vectors) / len(batch.groups)
                loss.backward()
                total += loss.detach()
            update(master, optimizer)
            copy.refresh()
            return float(total)

        yield step


@contextlib.contextmanager
def ours(
    shape: Shape,
    device: torch.device,
    batch: Batch,
    *,
    capacity: int = 24576,
    in_batch: bool = False,
    fp8: bool = False,
    attention_backend: AttentionBackend = "auto",
) -> Iterator[Step]:
    """Packed texts, float32 master weights; each distinct text is encoded once where that is cheaper."""
    master = llama(shape, device, torch.float32)
    copy = ComputeCopy(master)
    packed = PackedEncoder(copy.module, "avg", fp8=fp8, attention_backend=attention_backend)
    optimizer = adamw(master)
    loss_of = in_batch_loss if in_batch else explicit_loss

    def step() -> float:
        def share(vectors: Tensor) -> Tensor:
            return loss_of(vectors) / len(batch.groups)

        total = contrastive_backward(
            packed, batch.ids, batch.groups, share, capacity=capacity, needs_all_groups=in_batch
        )
        update(master, optimizer)
        copy.refresh()
        return float(total)

    yield step
