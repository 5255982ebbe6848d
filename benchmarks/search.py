"""Exact search and mining of hard negatives: ``python -m benchmarks.search [--passages N --dimension D --queries N]``.

Without sizes: 1,000,000 passages x 2048 against 10,000 queries on a GPU, bfloat16 vectors that lie on it; 100,000 x 384
against 20,000 on a CPU, float32. Beside ours: matrix product and top-k of torch, block by block, and the loop of the
recipe's miner (128 queries at a time, float32, one ``.item()`` per candidate). All find the same passages. The last row
is what prep does with the vectors of its encoder: float32, from main memory, 128 queries at a time.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from components.core import log
from components.core.retrieval.search import top_k
from components.prep.component import HardNegativeSettings
from components.prep.mine.hard_negatives import find_hard_negatives

DEPTH, NEGATIVES, MARGIN = 100, 16, 0.95
SETTINGS = HardNegativeSettings(hard_negatives_to_mine=NEGATIVES, hard_neg_margin=MARGIN)
RECIPE_BLOCK = 128
SIZES = {"cuda": (1_000_000, 2048, 10_000), "cpu": (100_000, 384, 20_000)}
TINY = (3_000, 16, 200)
REPEATS = {"cuda": 5, "cpu": 1}

Found = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    args = _arguments()
    log.configure("mining", verbose=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        logging.getLogger("components").setLevel(logging.WARNING)
    sizes = TINY if args.tiny else SIZES[device]
    passages, dimension, queries = (
        given or default for given, default in zip((args.passages, args.dimension, args.queries), sizes, strict=True)
    )
    before = _resident_gib()
    asked, searched, positives = _vectors(passages, dimension, queries, device)
    contestants = _contestants(asked, searched, positives)
    rows = [
        _row(name, work, device, queries * passages, before)
        for name, work in contestants.items()
        if name in report.chosen(contestants, args.only)
    ]
    _check(asked[:64], searched, positives[:64])
    title = f"{queries:,} queries against {passages:,} passages of {dimension} dimensions, {searched.dtype}"
    report.publish(title, rows, args)
    if args.limit_gib and _resident_gib() > args.limit_gib:
        sys.exit(f"peak memory {_resident_gib():.2f} GiB is above --limit-gib {args.limit_gib:g}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search and mining of hard negatives.")
    for name in ("passages", "dimension", "queries"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--limit-gib", type=float, help="fail when the process ever took more main memory than this")
    parser.add_argument("--tiny", action="store_true", help="a few vectors, to see that everything runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--only", default="", help="run only contestants whose name holds this")
    return parser.parse_args()


def _vectors(passages: int, dimension: int, queries: int, device: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Queries, passages, and the row of each query's positive, which it resembles; all of length 1."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    searched = torch.empty(passages, dimension, dtype=dtype, device=device)
    for start in range(0, passages, 50_000):
        block = torch.randn(min(50_000, passages - start), dimension, device=device)
        searched[start : start + 50_000] = torch.nn.functional.normalize(block, dim=1).to(dtype)
    positives = torch.randint(passages, (queries,), device=device)
    noise = torch.randn(queries, dimension, device=device) / dimension**0.5
    asked = torch.nn.functional.normalize(searched[positives].float() + noise, dim=1).to(dtype)
    return asked, searched, positives.tolist()


def _contestants(asked: torch.Tensor, searched: torch.Tensor, positives: list[int]) -> dict[str, Callable[[], Any]]:
    own = [[row] for row in positives]
    in_memory = [vectors.float().cpu().numpy() for vectors in (asked, searched)]
    same: dict[str, Any] = {"positives": own, "excluded": own, "settings": SETTINGS}
    return {
        f"ours: search, top {DEPTH}": lambda: top_k(asked, searched, DEPTH),
        f"torch: matrix product and top {DEPTH}, float32 scores": lambda: plain(asked, searched, DEPTH),
        f"ours: mining, {NEGATIVES} negatives, margin {MARGIN}": lambda: find_hard_negatives(asked, searched, **same),
        f"recipe's miner, {NEGATIVES} negatives, margin {MARGIN}": lambda: recipe(asked, searched, positives),
        "ours: mining as prep does it": lambda: find_hard_negatives(*in_memory, query_block=RECIPE_BLOCK, **same),
    }


def plain(asked: torch.Tensor, searched: torch.Tensor, k: int) -> Found:
    """Chunks of 1024 queries and 50,000 passages, as a user would write it."""
    parts = []
    for start in range(0, len(asked), 1024):
        queries = asked[start : start + 1024]
        best = []
        for first in range(0, len(searched), 50_000):
            block = searched[first : first + 50_000]
            scores = torch.mm(queries, block.T, out_dtype=torch.float32) if queries.is_cuda else queries @ block.T
            top = scores.topk(min(k, len(block)), dim=1)
            best.append((top.values, top.indices + first))
        values, places = (torch.cat(part, dim=1) for part in zip(*best, strict=True))
        merged = values.topk(k, dim=1)
        parts.append((merged.values, places.gather(1, merged.indices)))
    return tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))


def recipe(asked: torch.Tensor, searched: torch.Tensor, positives: list[int]) -> list[list[tuple[int, float]]]:
    """The recipe's way: whole rows of scores, positives and what is above the margin masked, twice as many taken."""
    passages = searched.float()
    found = []
    for start in range(0, len(asked), RECIPE_BLOCK):
        scores = asked[start : start + RECIPE_BLOCK].float() @ passages.T
        for number in range(len(scores)):
            row = positives[start + number]
            limit = scores[number, row].item() * MARGIN
            scores[number, row] = -torch.inf
            scores[number][scores[number] > limit] = -torch.inf
        top = scores.topk(2 * NEGATIVES, dim=1)
        for values, places in zip(top.values, top.indices, strict=True):
            found.append([(places[n].item(), values[n].item()) for n in range(NEGATIVES)])
    return found


def _row(name: str, work: Callable[[], Any], device: str, scores: int, before: float) -> dict[str, Any]:
    report.forget()
    if device == "cuda":
        work()
    started = time.process_time()
    best, taken = report.seconds(work, REPEATS[device])
    processor = (time.process_time() - started) / REPEATS[device]
    return {
        "contestant": name,
        "seconds": f"{best:.3f}",
        "CPU seconds": f"{processor:.3f}",
        "scores/s": f"{scores / best:.2e}",
        "peak GB on the GPU" if device == "cuda" else "peak GiB of the process so far": report.peak_gb()
        or f"{_resident_gib():.2f} ({before:.2f} before)",
        "repeats": " ".join(f"{one:.3f}" for one in taken),
    }


def _resident_gib() -> float:
    """Most main memory that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _check(asked: torch.Tensor, searched: torch.Tensor, positives: list[int]) -> None:
    """Ours, torch's and the recipe's find the same scores, up to the order of summation."""
    ours = top_k(asked, searched, DEPTH, label="checking search")
    np.testing.assert_allclose(ours.scores, plain(asked, searched, DEPTH)[0].numpy(), atol=2e-5)
    own = [[row] for row in positives]
    mined = find_hard_negatives(asked, searched, positives=own, excluded=own, settings=SETTINGS)
    theirs = [[score for _, score in one] for one in recipe(asked, searched, positives)]
    np.testing.assert_allclose(mined.scores, theirs, atol=2e-5)


if __name__ == "__main__":
    main()
