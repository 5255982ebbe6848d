"""What the ranks of tests/finetune/test_ranks.py do: several trainings, one after the other, some with a fault."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from components.core.errors import StageError
from components.core.ranks import Ranks
from components.finetune import program
from components.finetune.batch import Batch
from components.finetune.component import FinetuneConfig
from components.finetune.padded import PaddedGradient
from components.finetune.sharding import ShardedGradient

Add = Callable[..., Tensor]


def train_all(ranks: Ranks, runs: dict[str, dict[str, Any]], data: str, work: str) -> dict[str, Any]:
    """Each run's figures, or the exit code and message of its error; ``fault`` names one of FAULTS."""
    found = {}
    for name, given in runs.items():
        settings = FinetuneConfig(**{key: value for key, value in given.items() if key != "fault"})
        place = Path(work) / name
        if ranks.first:
            place.mkdir(parents=True)
        ranks.wait()
        places = {"checkpoint": place / "checkpoint", "training_report": place / "report.html"}
        kind = ShardedGradient if settings.parallelism == "fsdp" else PaddedGradient
        fault = FAULTS[given["fault"]](ranks, kind.add) if "fault" in given else kind.add
        with patch.object(kind, "add", fault):
            try:
                found[name] = program.train(ranks, settings, training_data=Path(data), **places)
            except StageError as error:
                found[name] = {"exit_code": error.exit_code, "message": str(error)}
    return found


def train_with_too_little_memory(ranks: Ranks, settings: dict[str, Any], data: str, work: str) -> dict[str, Any]:
    """One training whose memory runs out on rank 1; what it raises ends the rank."""
    config = FinetuneConfig(**settings)
    places = {"checkpoint": Path(work) / "checkpoint", "training_report": Path(work) / "report.html"}
    with patch.object(ShardedGradient, "add", FAULTS["out of memory"](ranks, ShardedGradient.add)):
        return program.train(ranks, config, training_data=Path(data), **places)


def _on_second_rank(what: Callable[[Tensor, int], Tensor]) -> Callable[[Ranks, Add], Add]:
    """``what`` of the loss and the number of the pass, on rank 1, after its gradient was added."""

    def wrap(ranks: Ranks, add: Add) -> Add:
        passes = 0

        def wrapped(self: PaddedGradient, batch: Batch, share: float) -> Tensor:
            nonlocal passes
            passes += 1
            loss = add(self, batch, share)
            return what(loss, passes) if ranks.rank == 1 else loss

        return wrapped

    return wrap


def _memory_runs_out(loss: Tensor, passes: int) -> Tensor:
    if passes == 2:
        raise torch.OutOfMemoryError("simulated")
    return loss


def _is_terminated(loss: Tensor, passes: int) -> Tensor:
    if passes == 5:
        signal.raise_signal(signal.SIGTERM)
    return loss


FAULTS = {
    "out of memory": _on_second_rank(_memory_runs_out),
    "not a number": _on_second_rank(lambda loss, passes: loss * (torch.nan if passes == 3 else 1)),
    "terminated": _on_second_rank(_is_terminated),
}
