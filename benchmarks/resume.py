"""Fine-tuning killed again and again against one that is not: ``python -m benchmarks.resume [--kills N] [--aimed N]``.

A run is started again after every SIGKILL until it ends; then the next run begins, until there were enough kills. Some
come at random moments, some while a state is being written. The final weights must be equal bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.workload import LLAMA_1B, TINY, Shape, passages, text, write_base
from components.__main__ import main as components_main

# Attempts are forked from a process that has loaded torch: most of their time is training.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["components.__main__", "components.finetune.program", "benchmarks.stages"])


@dataclass
class Tally:
    """What the kills met."""

    random: int = 0
    aimed: int = 0
    torn: int = 0
    runs: int = 0
    differing: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.random + self.aimed


class Run:
    """One training run in ``directory``: attempts that continue each other."""

    def __init__(self, data: Path, directory: Path, settings: list[str], environment: dict[str, str] | None = None):
        self.states, self.work = directory / "states", directory / "work"
        self.log = directory / "log.txt"
        arguments = ["--training-data", str(data), "--work", str(self.work), f"checkpoint_uri={self.states}"]
        self.arguments = ["finetune", *arguments, *settings]
        self._environment = environment or {}
        directory.mkdir(parents=True)

    def start(self) -> Any:
        """An attempt, as a process."""
        process = _PROCESSES.Process(target=_attempt, args=(self.arguments, str(self.log), self._environment))
        process.start()
        return process

    def weights(self) -> bytes:
        return (self.work / "checkpoint" / "model.safetensors").read_bytes()

    def trace(self) -> list[dict[str, Any]]:
        """The steps of ``training.jsonl`` without their speed."""
        lines = (self.work / "checkpoint" / "training.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]

    def folders(self) -> set[Path]:
        """Folders of training states, finished or not."""
        return set(self.states.glob("*/step-*"))

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-5:])


def _nothing() -> None:
    """Only starts a process."""


def _attempt(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "a", encoding="utf-8") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(components_main(arguments))


def kill_at_random(seconds: float, draw: random.Random) -> Callable[[Run, Any], bool]:
    """Kills up to ``seconds`` after the start of an attempt."""

    def strike(_: Run, process: Any) -> bool:
        process.join(draw.uniform(0, seconds))
        return _kill(process)

    return strike


def kill_in_save(draw: random.Random) -> Callable[[Run, Any], bool]:
    """Kills after a few saves, when a state has some of its files."""

    def strike(run: Run, process: Any) -> bool:
        before, wanted, files = run.folders(), draw.randint(1, 4), draw.randint(0, 2)
        seen: set[Path] = set()
        while process.is_alive():
            for path in run.folders() - before - seen:
                with contextlib.suppress(FileNotFoundError):
                    names = [file.name for file in path.iterdir()]
                    if len(seen) + 1 < wanted:
                        seen.add(path)
                    elif len(names) > files and "manifest.json" not in names:
                        return _kill(process)
                    elif "manifest.json" in names:
                        seen.add(path)
        return False

    return strike


def _kill(process: Any) -> bool:
    """Whether it was still running."""
    if not process.is_alive():
        return False
    process.kill()
    process.join()
    return process.exitcode == -9


def survive(
    make_run: Callable[[int], Run],
    strikes: Iterator[tuple[str, Callable[[Run, Any], bool]]],
    check: Callable[[Run], str],
) -> Tally:
    """Start runs until all ``strikes`` hit; ``check`` says what is wrong with the result of a run, or nothing."""
    tally = Tally()
    waiting = next(strikes, None)
    while waiting is not None:
        run = make_run(tally.runs)
        tally.runs += 1
        while True:
            process = run.start()
            hit = waiting is not None and waiting[1](run, process)
            if not hit:
                process.join()
                break
            assert waiting is not None
            setattr(tally, waiting[0], getattr(tally, waiting[0]) + 1)
            tally.torn += any(not (path / "manifest.json").is_file() for path in run.folders())
            waiting = next(strikes, None)
        wrong = check(run) if process.exitcode == 0 else f"exit code {process.exitcode}: {run.tail()}"
        shutil.rmtree(run.states, ignore_errors=True)
        if wrong:
            tally.differing.append(wrong)
    return tally


def write_data(shape: Shape, count: int, directory: Path) -> Path:
    """``count`` training examples, each with four negatives that are other examples' positives."""
    (directory / "corpus").mkdir(parents=True)
    texts = [text(ids) for ids in passages(shape, count)]
    rows = [
        {
            "question": " ".join(words.split()[1:6]),
            "pos_doc": [{"id": str(number)}],
            "neg_doc": [{"id": str((number + step) % count)} for step in (1, 2, 5, 9)],
        }
        for number, words in enumerate(texts)
    ]
    content = {"corpus": {"path": "./corpus/"}, "data": rows}
    (directory / "train_mined.automodel_unrolled.json").write_text(json.dumps(content), encoding="utf-8")
    table = pa.table({"id": [str(number) for number in range(count)], "text": texts})
    pq.write_table(table, directory / "corpus" / "train.parquet")
    return directory


def compare_exactly(whole: Run) -> Callable[[Run], str]:
    def check(run: Run) -> str:
        if run.trace() != whole.trace():
            return "the log differs"
        return "" if run.weights() == whole.weights() else "the weights differ"

    return check


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills of fine-tuning, and what is left of the run.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--aimed", type=int, default=20, help="how many of them come while a state is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--work", type=Path, help="directory for data and states; a temporary one by default")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    shape = LLAMA_1B if gpu else TINY
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(dir=args.work) as directory:
        work = Path(directory)
        base = work / "base"
        write_base(shape, base)
        data = write_data(shape, args.examples, work / "data")
        settings = [f"base_model={base}", f"num_epochs={args.epochs}", "checkpoint_every_seconds=null"]
        # A state of the large model takes 15 GB.
        settings += ["checkpoint_every_steps=6", "keep_checkpoints=1"] if gpu else ["checkpoint_every_steps=2"]
        settings += ["learning_rate=1e-5" if gpu else "learning_rate=1e-4"]
        whole = Run(data, work / "whole", settings)
        seconds = _timed(whole)
        kinds = ["aimed"] * args.aimed + ["random"] * (args.kills - args.aimed)
        draw.shuffle(kinds)
        by_kind = {"random": kill_at_random(seconds, draw), "aimed": kill_in_save(draw)}
        started = time.perf_counter()
        tally = survive(
            lambda number: Run(data, work / f"run{number}", settings),
            ((kind, by_kind[kind]) for kind in kinds),
            compare_exactly(whole),
        )
    chip = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    print(f"{chip}, torch {torch.__version__}, {datetime.date.today()}; an unkilled run takes {seconds:.1f} s")
    print(f"{tally.kills} kills ({tally.random} at random, {tally.aimed} while a state was written)")
    print(f"{tally.torn} left an unfinished state behind")
    print(f"{tally.runs} runs came to their end in {time.perf_counter() - started:.0f} s")
    print(f"{len(tally.differing)} differ from the unkilled run", *tally.differing, sep="\n  ")
    sys.exit(1 if tally.differing else 0)


def _timed(run: Run) -> float:
    """Seconds of a run that nobody kills, those not counted in which torch is loaded for all attempts.

    What it said about its states is printed.
    """
    warm = _PROCESSES.Process(target=_nothing)
    warm.start()
    warm.join()
    started = time.perf_counter()
    process = run.start()
    process.join()
    if process.exitcode != 0:
        sys.exit(f"the unkilled run failed: {run.tail()}")
    seconds = time.perf_counter() - started
    said = [line for line in run.log.read_text(encoding="utf-8").splitlines() if "state after step" in line]
    print(*said[:3], sep="\n")
    shutil.rmtree(run.states)
    return seconds


if __name__ == "__main__":
    main()
