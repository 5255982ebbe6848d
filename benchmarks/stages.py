"""The stages' own programs, prep to export, with default settings on a model of the 1B shape with random weights.

A question is some words of its passage and some of none: the figures say what a stage costs, not how good a model is.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.workload import LLAMA_1B, TINY, Shape, passages, text, write_base
from components.command_line.cli import parse
from components.core import log

_FIGURES = {
    "prep": ("passages", "train_examples", "mined_negatives"),
    "finetune": ("steps", "batch_size", "tokens_per_second", "first_loss", "last_loss"),
    "eval": ("queries", "base_ndcg_at_10", "finetuned_ndcg_at_10"),
    "export": ("onnx_megabytes", "parity_min_cosine", "onnx_latency_1x32_ms", "onnx_latency_16x128_ms"),
}


def main() -> None:
    args = report.arguments("Seconds and GPU memory of each stage.")
    shape, count = (TINY, 100) if args.tiny else (LLAMA_1B, 2000)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_base(shape, work / "base")
        _write_records(shape, count, work / "qa_pairs")
        rows = [_run(stage, work) for stage in _FIGURES]
    report.publish(f"Stages, {count:,} passages and questions", rows, args)


def _run(stage: str, work: Path) -> dict[str, Any]:
    """Run ``stage`` as the command line does; each needs what the one before it made."""
    report.forget()
    log.configure(stage, verbose=False)
    settings = [f"base_model={work / 'base'}"] if stage in ("prep", "finetune") else []
    start = time.perf_counter()
    parse([stage, "--work", str(work), *settings]).run()
    figures = json.loads((work / f"{stage}_metrics.json").read_text(encoding="utf-8"))["metrics"]
    return {
        "stage": stage,
        "seconds": round(time.perf_counter() - start, 1),
        "peak GB": report.peak_gb(),
        "figures": ", ".join(f"{name} {figures[name]}" for name in _FIGURES[stage]),
    }


def _write_records(shape: Shape, count: int, directory: Path) -> None:
    """Questions of three words of their passage and nine others."""
    directory.mkdir()
    noise = passages(shape, count, seed=3)
    with (directory / "records.jsonl").open("w", encoding="utf-8") as out:
        for number, (ids, other) in enumerate(zip(passages(shape, count), noise, strict=True)):
            record = {"query": text(ids[1:4] + other[:9]), "positive": text(ids), "document": str(number)}
            out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
