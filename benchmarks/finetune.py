"""Seconds per optimizer step: ``python -m benchmarks.finetune [--tiny] [--json FILE]``.

A step is 128 queries with one positive and four negatives each, temperature 0.02, AdamW. Peers train bfloat16 weights,
as they do by default; "hand loop" and ours keep float32 weights, gradients and optimizer states. Everybody gets token
ids that were made before the clock started, except where a name says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import report
from benchmarks.batch import NEGATIVES, Batch, make_batch
from benchmarks.steps import Step, hand_loop, ours, recipe, sentence_transformers
from benchmarks.workload import LLAMA_1B, TINY, Shape


@dataclass(frozen=True)
class Contestant:
    """How a contestant is set up, the batch that its step trains on, and how often the step is timed."""

    repeats: int
    batch: Batch
    setup: Callable[[], contextlib.AbstractContextManager[Step]]


def make_contestants(shape: Shape, device: torch.device, distinct: Batch, shared: Batch) -> dict[str, Contestant]:
    """Return the contestants by name; ``shared`` has every passage twice, ``distinct`` once."""
    twice, whole = shared.repeated(), 90112 if device.type == "cuda" else 1024
    contestants: dict[str, Contestant] = {}

    def add(name: str, repeats: int, make_step: Callable[..., Any], batch: Batch = distinct, **options: Any) -> None:
        # The batch in which passages repeat says how many tokens were trained on, also where each is encoded once.
        trained = twice if batch is shared else batch
        setup = functools.partial(make_step, shape, device, batch, **options)
        contestants[name] = Contestant(repeats, trained, setup)

    add("recipe's loop (micro-batch 4)", 1, recipe)
    cached, plain = {"micro": 32, "cached": True}, {"attention": "sdpa", "fused": False}
    add("sentence-transformers, CachedMNRL 32, sdpa", 1, sentence_transformers, **cached, **plain)
    if device.type == "cuda":
        tuned = {"micro": 64, "attention": "flash_attention_2", "fused": True}
        st = sentence_transformers
        add("sentence-transformers, CachedMNRL 64, FA2 unpadded, liger", 2, st, cached=True, **tuned)
        add("sentence-transformers, MNRL 64 x 2, FA2 unpadded, liger", 3, st, cached=False, **tuned)
        name = "the same, tokenising in the step as its trainer does"
        add(name, 3, st, cached=False, tokenizes=True, **tuned)
        add("hand loop: transformers, FA2 packed, liger", 4, hand_loop)
    add("ours, bf16", 5, ours)
    add("ours, bf16, FlashAttention-2", 3, ours, attention_backend="torch")
    add("ours, fp8", 3, ours, fp8=True)
    add("ours, bf16, in-batch negatives 128 x 640", 2, ours, capacity=whole, in_batch=True)
    add("ours, bf16; every passage twice, encoded twice", 3, ours, twice)
    add("ours, bf16; every passage twice, encoded once", 3, ours, shared)
    add("ours, bf16; every passage twice, encoded once, all activations kept", 3, ours, shared, capacity=whole)
    return contestants


def main() -> None:
    args = report.arguments("Seconds per optimizer step, side by side.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, size = (TINY, 8) if args.tiny else (LLAMA_1B, 128)
    distinct, shared = (make_batch(shape, size, distinct=value) for value in (True, False))
    rows: list[dict[str, Any]] = []
    contestants = make_contestants(shape, device, distinct, shared)
    for name in report.chosen(contestants, args.only):
        contestant = contestants[name]
        report.forget()
        losses, best, taken = _time_steps(contestant.setup, 1 if args.tiny else contestant.repeats)
        rows.append(
            {
                "contestant": name,
                "s/step": round(best, 3),
                "tokens/s": round(sum(contestant.batch.lengths) / best),
                "TFLOP/s": round(3 * shape.flops(contestant.batch.lengths) / best / 1e12, 1),
                "peak GB": report.peak_gb(),
                "loss of the first steps": " ".join(f"{loss:.5f}" for loss in losses[:3]),
                "seconds": " ".join(f"{value:.2f}" for value in taken),
            }
        )
        print(rows[-1], flush=True)
    report.publish(f"One optimizer step, {size} queries x (1 + {NEGATIVES})", rows, args)


def _time_steps(
    setup: Callable[[], contextlib.AbstractContextManager[Step]], repeats: int
) -> tuple[list[float], float, list[float]]:
    """Return the loss of each step, the first as a warm-up, the fewest seconds, and those of every repeat.

    A function of its own: nothing of a contestant is held while the next one runs.
    """
    with setup() as step:
        losses = [step()]
        best, taken = report.seconds(lambda: losses.append(step()), repeats)
    return losses, best, taken


if __name__ == "__main__":
    main()
