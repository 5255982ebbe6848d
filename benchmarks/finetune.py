"""Seconds per optimizer step: ``python -m benchmarks.finetune [--tiny] [--json FILE]``.

A step is 128 queries with one positive and four negatives each, temperature 0.02, AdamW. Peers train bfloat16 weights,
as they do by default; "hand loop" and ours keep float32 weights, gradients and optimizer states. Everybody gets token
ids that were made before the clock started, except where a name says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor, nn

from benchmarks import report
from benchmarks.peers import flat, liger, padded, sentence_transformer
from benchmarks.workload import LLAMA_1B, TINY, Shape, llama, passages, queries, text
from components.core.encoder.master import ComputeCopy
from components.core.encoder.packed import PackedLlama
from components.core.encoder.packing import balanced, pack
from components.core.encoder.schedule import schedule

_TEMPERATURE = 0.02
_NEGATIVES = 4
Step = Callable[[], float]


@dataclass(frozen=True)
class Batch:
    """``ids``: token ids of the texts; ``groups``: for each query its row, its positive's, its negatives'."""

    ids: list[list[int]]
    groups: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    def repeated(self) -> Batch:
        """The same batch with a copy of a text for every use of it: what those see who do not look."""
        rows = [row for group in self.groups for row in group]
        width = len(self.groups[0])
        return Batch([self.ids[row] for row in rows], [list(range(n, n + width)) for n in range(0, len(rows), width)])


def make_batch(shape: Shape, size: int, *, distinct: bool) -> Batch:
    """``size`` queries; their passages all distinct, or every passage used twice, in random places."""
    slots = size * (1 + _NEGATIVES)
    unique = slots if distinct else slots // 2
    ids = queries(shape, size) + passages(shape, unique)
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(3)) % unique
    rows = (order + size).view(size, -1).tolist()
    return Batch(ids, [[query, *rows[query]] for query in range(size)])


def explicit_loss(query: Tensor, candidates: Tensor) -> Tensor:
    """Sum over queries [n, d] of the cross-entropy of the first of its own candidates [n, 1 + negatives, d]."""
    logits = torch.einsum("nd,ncd->nc", query, candidates) / _TEMPERATURE
    return nn.functional.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64), reduction="sum")


def in_batch_loss(query: Tensor, candidates: Tensor) -> Tensor:
    """The same with the candidates of all queries."""
    logits = query @ candidates.flatten(0, 1).T / _TEMPERATURE
    right = torch.arange(len(query), device=query.device) * candidates.shape[1]
    return nn.functional.cross_entropy(logits, right, reduction="sum")


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
            loss = explicit_loss(query, passage.view(len(groups), -1, passage.shape[-1])) / len(batch.groups)
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
        loss_of = kind(contestant, scale=1 / _TEMPERATURE, **({"mini_batch_size": micro} if cached else {}))
        optimizer = adamw(model)
        size = len(batch.groups) if cached else micro
        columns = range(2 + _NEGATIVES)
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
            for places in balanced(sizes, capacity):
                rows = [row for place in places for row in batch.groups[place]]
                vectors = flat(copy.module, [batch.ids[row] for row in rows]).view(len(places), 2 + _NEGATIVES, -1)
                loss = explicit_loss(vectors[:, 0], vectors[:, 1:]) / len(batch.groups)
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
    capacity: int = 16384,
    in_batch: bool = False,
    fp8: bool = False,
) -> Iterator[Step]:
    """Packed, compiled, float32 masters; each distinct text once where that is cheaper."""
    master = llama(shape, device, torch.float32)
    copy = ComputeCopy(master)
    packed = PackedLlama(copy.module, "avg", compiled=device.type == "cuda", fp8=fp8)
    optimizer = adamw(master)
    loss_of = in_batch_loss if in_batch else explicit_loss

    def step() -> float:
        total = 0.0
        phases = schedule(batch.groups, batch.lengths, capacity=capacity, layers=len(master.layers), together=in_batch)
        for phase in phases:
            vectors = torch.cat(
                [packed(pack(batch.ids, rows, device), recompute_layers=phase.recompute_layers) for rows in phase.bins]
            )
            place = {row: number for number, row in enumerate(row for rows in phase.bins for row in rows)}
            wanted = [[place[row] for row in batch.groups[group]] for group in phase.groups]
            chosen = vectors[torch.tensor(wanted, device=device)]
            loss = loss_of(chosen[:, 0], chosen[:, 1:]) / len(batch.groups)
            loss.backward()
            total += loss.detach()
        update(master, optimizer)
        copy.refresh()
        return float(total)

    yield step


def contestants(shape: Shape, device: torch.device, distinct: Batch, shared: Batch) -> dict[str, tuple[int, Any]]:
    """Name -> timed steps, how to set it up."""
    st = sentence_transformers
    plain = {"attention": "sdpa", "fused": False}
    tuned = {"attention": "flash_attention_2", "fused": True}
    whole = 90112 if device.type == "cuda" else 1024
    found: dict[str, tuple[int, Any]] = {
        "recipe's loop (micro-batch 4)": (1, lambda: recipe(shape, device, distinct)),
        "sentence-transformers, CachedMNRL 32, sdpa": (
            1,
            lambda: st(shape, device, distinct, micro=32, cached=True, **plain),
        ),
    }
    if device.type == "cuda":
        found |= {
            "sentence-transformers, CachedMNRL 64, FA2 unpadded, liger": (
                2,
                lambda: st(shape, device, distinct, micro=64, cached=True, **tuned),
            ),
            "sentence-transformers, MNRL 64 x 2, FA2 unpadded, liger": (
                3,
                lambda: st(shape, device, distinct, micro=64, cached=False, **tuned),
            ),
            "the same, tokenising in the step as its trainer does": (
                3,
                lambda: st(shape, device, distinct, micro=64, cached=False, tokenizes=True, **tuned),
            ),
            "hand loop: transformers, FA2 packed, liger": (4, lambda: hand_loop(shape, device, distinct)),
        }
    return found | {
        "ours, bf16": (5, lambda: ours(shape, device, distinct)),
        "ours, fp8": (3, lambda: ours(shape, device, distinct, fp8=True)),
        "ours, bf16, in-batch negatives 128 x 640": (
            2,
            lambda: ours(shape, device, distinct, capacity=whole, in_batch=True),
        ),
        "ours, bf16; every passage twice, encoded twice": (3, lambda: ours(shape, device, shared.repeated())),
        "ours, bf16; every passage twice, encoded once": (3, lambda: ours(shape, device, shared, capacity=24576)),
        "ours, bf16; every passage twice, encoded once, all activations kept": (
            3,
            lambda: ours(shape, device, shared, capacity=whole),
        ),
    }


def main() -> None:
    args = report.arguments("Seconds per optimizer step, side by side.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, size = (TINY, 8) if args.tiny else (LLAMA_1B, 128)
    distinct, shared = (make_batch(shape, size, distinct=value) for value in (True, False))
    rows: list[dict[str, Any]] = []
    for name, (repeats, setup) in contestants(shape, device, distinct, shared).items():
        if args.only not in name:
            continue
        report.forget()
        batch = shared.repeated() if "twice" in name else distinct
        with setup() as step:
            first = step()
            median, taken, last = report.seconds(step, 1 if args.tiny else repeats)
        rows.append(
            {
                "contestant": name,
                "s/step": round(median, 3),
                "tokens/s": round(sum(batch.lengths) / median),
                "TFLOP/s": round(3 * shape.flops(batch.lengths) / median / 1e12, 1),
                "peak GB": report.peak_gb(),
                "loss, first step": round(first, 5),
                "loss, last step": round(last, 5),
                "seconds": " ".join(f"{value:.2f}" for value in taken),
            }
        )
        print(rows[-1], flush=True)
    report.publish(f"One optimizer step, {size} queries x (1 + {_NEGATIVES})", rows, args)


if __name__ == "__main__":
    main()
