"""The stages' own programs, prep to export, with default settings on a model of the 1B shape with random weights.

A question is some words of its passage and some of none: the figures say what a stage costs, not how good a model is.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.workload import LLAMA_1B, TINY, Shape, passages, text, word_tokenizer
from components.cli import parse
from components.core import log
from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder

_FIGURES = {
    "prep": ("passages", "train_examples", "mined_negatives"),
    "finetune": ("steps", "batch_size", "tokens_per_second", "first_loss", "last_loss"),
    "eval": ("queries", "base_ndcg_at_10", "finetuned_ndcg_at_10"),
    "export": ("onnx_megabytes", "parity_min_cosine", "latency_1x32_ms", "latency_16x128_ms"),
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


def write_base(shape: Shape, directory: Path) -> None:
    """A bidirectional Llama of ``shape`` with random weights, as a Hugging Face directory."""
    architecture = LlamaBidirectionalConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.dimension,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        backbone = LlamaBidirectionalModel(architecture)
    config = EncoderConfig(base_model=str(directory))
    save_checkpoint(Encoder(backbone.cpu(), word_tokenizer(shape), config).eval(), directory)


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
