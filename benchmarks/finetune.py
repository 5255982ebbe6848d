"""Seconds per optimizer step: ``python -m benchmarks.finetune [--tiny] [--json FILE]``.

A step is 128 queries with one positive and four negatives each, temperature 0.02, AdamW. Peers train bfloat16 weights,
as they do by default; "hand loop" and ours keep float32 weights, gradients and optimizer states. Everybody gets token
ids that were made before the clock started, except where a name says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import report
from benchmarks.batch import NEGATIVES, Batch, make_batch
from benchmarks.steps import Step, hand_loop, ours, recipe, sentence_transformers
from benchmarks.workload import LLAMA_1B, TINY, Shape


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
        "ours, bf16, FlashAttention-2": (3, lambda: ours(shape, device, distinct, newest=False)),
        "ours, fp8": (3, lambda: ours(shape, device, distinct, fp8=True)),
        "ours, bf16, in-batch negatives 128 x 640": (
            2,
            lambda: ours(shape, device, distinct, capacity=whole, in_batch=True),
        ),
        "ours, bf16; every passage twice, encoded twice": (3, lambda: ours(shape, device, shared.repeated())),
        "ours, bf16; every passage twice, encoded once": (3, lambda: ours(shape, device, shared)),
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
    found = contestants(shape, device, distinct, shared)
    for name in report.chosen(found, args.only):
        repeats, setup = found[name]
        report.forget()
        batch = shared.repeated() if "twice" in name else distinct
        losses, best, taken = _timed(setup, 1 if args.tiny else repeats)
        rows.append(
            {
                "contestant": name,
                "s/step": round(best, 3),
                "tokens/s": round(sum(batch.lengths) / best),
                "TFLOP/s": round(3 * shape.flops(batch.lengths) / best / 1e12, 1),
                "peak GB": report.peak_gb(),
                "loss of the first steps": " ".join(f"{loss:.5f}" for loss in losses[:3]),
                "seconds": " ".join(f"{value:.2f}" for value in taken),
            }
        )
        print(rows[-1], flush=True)
    report.publish(f"One optimizer step, {size} queries x (1 + {NEGATIVES})", rows, args)


def _timed(
    setup: Callable[[], contextlib.AbstractContextManager[Step]], repeats: int
) -> tuple[list[float], float, list[float]]:
    """Loss of each step, the first as a warm-up; fewest seconds, and those of every repeat.

    A function of its own: nothing of a contestant is held while the next one runs.
    """
    with setup() as step:
        losses = [step()]
        best, taken = report.seconds(lambda: losses.append(step()), repeats)
    return losses, best, taken


if __name__ == "__main__":
    main()
