"""What 8-bit training costs in quality: ``python -m benchmarks.precision BEIR_FOLDER ... [--base DIR] [--seeds N]``.

Half of a collection's passages and their questions train the small profile, by the stages' own programs and with the
same data, negatives and seeds in each arithmetic; the other half's questions are asked afterwards. Vectors are computed
in bfloat16 for everybody (float32 on a CPU). Give collections with questions by people; none comes with the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from components.command_line.cli import parse
from components.core import log

# Of MiniLM: 8 bits need a GPU that has them.
PRECISIONS = {"cuda": ("fp32", "bf16", "fp8"), "cpu": ("fp32", "bf16")}


def main() -> None:
    parser = argparse.ArgumentParser(description="nDCG@10 after training in float32, bfloat16 and 8 bits.")
    parser.add_argument("collections", nargs="+", type=Path, metavar="BEIR_FOLDER")
    parser.add_argument("--base", help="directory of the base model (default: the small profile's)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings in each arithmetic (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training data (default: 3)")
    parser.add_argument("--tiny", action="store_true", help="one seed, one epoch: to see that it runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    if args.tiny:
        args.seeds = args.epochs = 1
    rows = [row for collection in args.collections for row in _rows(collection, args)]
    report.publish("Arithmetic of training and nDCG@10", rows, args)


def _rows(collection: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    base = [f"base_model={args.base}", "base_model_sha256=null"] if args.base else []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        data = ["--qa-pairs", str(collection)]
        _stage("prep", work, *data, *base, "train_ratio=0.5", "val_ratio=0", "test_ratio=0.5")
        return [_row(collection, precision, work, base, args) for precision in PRECISIONS[_device()]]


def _row(collection: Path, precision: str, work: Path, base: list[str], args: argparse.Namespace) -> dict[str, Any]:
    trained, measured = [], []
    for seed in range(42, 42 + args.seeds):
        _stage("finetune", work, *base, f"precision={precision}", f"seed={seed}", f"num_epochs={args.epochs}")
        _stage("eval", work, "eval_bm25=false", "k_values=[10]")
        trained.append(_figures("finetune", work))
        measured.append(_figures("eval", work))
    tuned = [run["finetuned_ndcg_at_10"] for run in measured]
    row = {
        "collection": collection.name,
        "training in": precision,
        "steps": trained[0]["steps"],
        "last loss": f"{statistics.fmean(run['last_loss'] for run in trained):.4f}",
        "test questions": measured[0]["queries"],
        "nDCG@10 base": f"{measured[0]['base_ndcg_at_10']:.4f}",
        "nDCG@10 tuned": f"{statistics.fmean(tuned):.4f}",
        "by seed": " ".join(f"{value:.4f}" for value in tuned),
    }
    print(row, flush=True)
    return row


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _stage(stage: str, work: Path, *arguments: str) -> None:
    log.configure(stage, verbose=False)
    parse([stage, "--profile", "small", "--work", str(work), *arguments]).run()


def _figures(stage: str, work: Path) -> dict[str, float]:
    return json.loads((work / f"{stage}_metrics.json").read_text(encoding="utf-8"))["metrics"]


if __name__ == "__main__":
    main()
