"""Fine-tuning on one GPU and on two: ``python -m benchmarks.scaling [--tiny] [--json FILE] [--only NAMES]``.

Every contestant is the stage's own command on the same data: 16 steps of 128 queries with one positive and four
negatives each, all passages distinct, a model of the 1B shape with random weights. What counts is the median of the
steps' tokens per second, without the first four, and the largest difference of a loss, as a share of it, to the first
contestant's with the same loss; "one GPU, again" shows how far one GPU is from itself. Without GPUs two processes share
the cores: the figures say only that everything runs.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import report
from benchmarks.workload import LLAMA_1B, TINY, Shape, passages, queries, text, write_base

WARM_UP = 4
NEGATIVES = 4
IN_BATCH = ["in_batch_negatives=true", "local_batch_size=128"]
# Of the 1B shape, on each GPU: weights, gradients and optimizer; activations of a token.
_STATES, _PER_TOKEN, _USABLE = 24e9, 1.25e6, 0.88


def contestants() -> dict[str, tuple[int, list[str]]]:
    """Name -> processes, settings. The first of each loss is what the others are compared with."""
    full = [*IN_BATCH, f"packed_batch_tokens={_tokens_that_fit()}"]
    return {
        "one GPU": (1, []),
        "one GPU, again": (1, []),
        "two GPUs": (2, []),
        "one GPU, in-batch negatives 128 x 640": (1, IN_BATCH),
        "two GPUs, in-batch negatives 128 x 640": (2, IN_BATCH),
        "one GPU, in-batch negatives, memory filled": (1, full),
        "two GPUs, in-batch negatives, memory filled": (2, full),
        "two GPUs, sums in bfloat16": (2, ["gradient_reduction=bf16"]),
        "two GPUs, fsdp": (2, ["parallelism=fsdp", "local_batch_size=16"]),
    }


def main() -> None:
    args = report.arguments("Fine-tuning on one GPU and on two, side by side.")
    # 128 queries per step are scaled down for fewer than 2000 examples.
    shape, steps, batch = (TINY, 8, 16) if args.tiny else (LLAMA_1B, 16, 128)
    rows: list[dict[str, Any]] = []
    first: dict[bool, tuple[list[float], float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_base(shape, work / "base")
        data, tokens = write_data(shape, steps * batch, work / "data")
        found = contestants()
        for name in report.chosen(found, args.only):
            processes, settings = found[name]
            given = [f"base_model={work / 'base'}", "num_epochs=1", f"global_batch_size={batch}", *settings]
            losses, speed, first_step, seconds = _train(data, work / "work", [*given, f"num_processes={processes}"])
            losses_of_first, speed_of_first = first.setdefault("in-batch" in name, (losses, speed))
            apart = max(abs(a - b) / b for a, b in zip(losses, losses_of_first, strict=True))
            rows.append(
                {
                    "contestant": name,
                    "s/step": round(tokens / steps / speed, 3),
                    "tokens/s": round(speed),
                    "times the first": round(speed / speed_of_first, 2),
                    "largest difference of a loss": f"{apart:.1e}",
                    "loss of the last step": losses[-1],
                    "seconds to the first step's end": round(first_step, 1),
                    "seconds in all": round(seconds),
                }
            )
            print(rows[-1], flush=True)
    report.publish(f"Fine-tuning on several GPUs, {steps} steps of {batch} queries x (1 + {NEGATIVES})", rows, args)


def _tokens_that_fit() -> int:
    """As packed_batch_tokens, what fills the memory of a GPU; all of the step's where that is enough."""
    if not torch.cuda.is_available():
        return 4096
    room = _USABLE * torch.cuda.get_device_properties(0).total_memory - _STATES
    return int(room / _PER_TOKEN) // 1024 * 1024


def write_data(shape: Shape, count: int, directory: Path) -> tuple[Path, int]:
    """``count`` training examples, no passage twice; where they lie, and how many tokens training sees of them."""
    (directory / "corpus").mkdir(parents=True)
    asked, found = queries(shape, count), passages(shape, count * (1 + NEGATIVES))
    texts = [text(ids) for ids in found]
    rows = [
        {
            "question": text(ids),
            "pos_doc": [{"id": str(number)}],
            "neg_doc": [{"id": str(count + number * NEGATIVES + place)} for place in range(NEGATIVES)],
        }
        for number, ids in enumerate(asked)
    ]
    content = {"corpus": {"path": "./corpus/"}, "data": rows}
    (directory / "train_mined.automodel_unrolled.json").write_text(json.dumps(content), encoding="utf-8")
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": texts})
    pq.write_table(table, directory / "corpus" / "train.parquet")
    # The prefixes "query: " and "passage: " are a word each, so a token.
    return directory, sum(len(ids) + 1 for ids in [*asked, *found])


def _train(data: Path, work: Path, settings: list[str]) -> tuple[list[float], float, float, float]:
    """Loss of each step, median tokens per second, and seconds from the command's start to the end of the first step
    and to its own."""
    argv = [sys.executable, "-m", "components", "finetune", "--training-data", str(data), "--work", str(work)]
    written, said = work / "checkpoint.partial" / "training.jsonl", data / "stderr"
    shutil.rmtree(work, ignore_errors=True)
    started = time.perf_counter()
    with said.open("w", encoding="utf-8") as out:
        process = subprocess.Popen([*argv, *settings], stderr=out, env=os.environ)
    while process.poll() is None and not (written.exists() and written.stat().st_size):
        time.sleep(0.05)
    first_step = time.perf_counter() - started
    process.wait()
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(settings)}: exit code {process.returncode}\n{said.read_text(encoding='utf-8')[-3000:]}")
    lines = (work / "checkpoint" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    speed = statistics.median(step["tokens_per_second"] for step in steps[WARM_UP:])
    return [step["loss"] for step in steps], speed, first_step, seconds


if __name__ == "__main__":
    main()
