"""Passages per second: ``python -m benchmarks.encode [--tiny] [--json FILE]``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from benchmarks.peers import liger, padded, recipe_encode, sentence_transformer
from benchmarks.workload import LLAMA_1B, TINY, Shape, llama, passages, text, word_tokenizer
from components.core.encoder.packed.encoder import PackedEncoder

Encode = Callable[[list[str]], Any]
_CHECKED = 16


@contextlib.contextmanager
def recipe(shape: Shape, device: torch.device, *, batch_size: int) -> Iterator[Encode]:
    model, tokenizer = llama(shape, device, torch.bfloat16), word_tokenizer(shape)
    yield lambda texts: recipe_encode(model, tokenizer, texts, batch_size)


@contextlib.contextmanager
def sentence_transformers(
    shape: Shape, device: torch.device, *, batch_size: int, attention: str = "sdpa", fused: bool = False
) -> Iterator[Encode]:
    model = llama(shape, device, torch.bfloat16, attention)
    with liger(model) if fused else contextlib.nullcontext():
        contestant = sentence_transformer(model, shape)
        yield lambda texts: contestant.encode(texts, batch_size=batch_size, convert_to_tensor=True).float().cpu()


@contextlib.contextmanager
def ours(shape: Shape, device: torch.device, *, capacity: int, fp8: bool = False) -> Iterator[Encode]:
    model = llama(shape, device, torch.bfloat16)
    packed = PackedEncoder(model, "avg", fp8=fp8)
    tokenizer = word_tokenizer(shape)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(texts), truncation=True, max_length=512, return_attention_mask=False)["input_ids"]

    def encode(texts: list[str]) -> Tensor:
        vectors = np.empty((len(texts), shape.dimension), dtype=np.float32)
        for rows, found in packed.stream(texts, tokenize, capacity):
            vectors[rows] = found
        return torch.from_numpy(vectors)

    yield encode


def contestants(device: torch.device) -> dict[str, tuple[int, Any]]:
    """Name -> passages to encode (slow ones get fewer of the same kind), how to set it up."""
    st = sentence_transformers
    found: dict[str, tuple[int, Any]] = {
        "recipe's evaluation (BEIR wrapper, 4 at a time, fp16 autocast)": (
            384,
            lambda s: recipe(s, device, batch_size=4),
        ),
        "recipe's miner (16 at a time, fp16 autocast)": (768, lambda s: recipe(s, device, batch_size=16)),
        "sentence-transformers, default (32, sdpa)": (1536, lambda s: st(s, device, batch_size=32)),
        "sentence-transformers, 256, sdpa": (4096, lambda s: st(s, device, batch_size=256)),
    }
    if device.type == "cuda":
        flash = "flash_attention_2"
        found |= {
            "sentence-transformers, 256, FA2 unpadded": (
                6144,
                lambda s: st(s, device, batch_size=256, attention=flash),
            ),
            "sentence-transformers, 256, FA2 unpadded, liger": (
                8192,
                lambda s: st(s, device, batch_size=256, attention=flash, fused=True),
            ),
        }
    return found | {
        "ours, bf16": (8192, lambda s: ours(s, device, capacity=16384)),
        "ours, fp8": (8192, lambda s: ours(s, device, capacity=16384, fp8=True)),
    }


def main() -> None:
    args = report.arguments("Passages per second of encoders, side by side.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = TINY if args.tiny else LLAMA_1B
    ids = passages(shape, 64 if args.tiny else 8192)
    texts = [text(row) for row in ids]
    reference_model = llama(shape, device, torch.bfloat16).float()  # the contestants' weights, exact arithmetic
    with torch.no_grad():
        reference = padded(reference_model, ids[:_CHECKED]).cpu()
    del reference_model
    rows: list[dict[str, Any]] = []
    found = contestants(device)
    for name in report.chosen(found, args.only):
        count, setup = found[name]
        report.forget()
        count = min(count, 16) if args.tiny else count
        checked, best, taken, busy = _timed(setup(shape), texts, count, 1 if args.tiny else 3)
        rows.append(_row(name, shape, [len(row) for row in ids[:count]], best, taken, reference, checked))
        rows[-1]["passages/s, kernels alone"] = round(count / busy, 1) if busy else None
        print(rows[-1], flush=True)
    report.publish("Encoding", rows, args)


def _timed(
    contestant: contextlib.AbstractContextManager[Encode], texts: list[str], count: int, repeats: int
) -> tuple[Tensor, float, list[float], float | None]:
    """Vectors of the first texts; of ``count`` of them the fewest seconds, those of every repeat, and the kernels' own.

    A function of its own: nothing of a contestant is held while the next one runs.
    """
    with contestant as encode:
        checked = encode(texts[:_CHECKED])
        encode(texts[: min(count, 1024)])
        best, taken = report.seconds(lambda: encode(texts[:count]), repeats)
        return checked, best, taken, report.kernel_seconds(lambda: encode(texts[:count]))


def _row(
    name: str, shape: Shape, lengths: list[int], best: float, taken: list[float], reference: Tensor, checked: Tensor
) -> dict[str, Any]:
    cosine = torch.nn.functional.cosine_similarity(reference, checked, dim=-1).min().item()
    return {
        "contestant": name,
        "passages/s": round(len(lengths) / best, 1),
        "tokens/s": round(sum(lengths) / best),
        "TFLOP/s": round(shape.flops(lengths) / best / 1e12, 1),
        "peak GB": report.peak_gb(),
        "least cosine to fp32": round(cosine, 6),
        "passages": len(lengths),
        "seconds": " ".join(f"{value:.2f}" for value in taken),
    }


if __name__ == "__main__":
    main()
