"""What the ranks of tests/finetune/test_ranks.py do: several trainings, one after the other, some with a fault."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.model import Encoder
from components.core.encoder.training import contrastive
from components.core.encoder.training.phases import Phase, plan_phases
from components.core.errors import StageError
from components.core.store.directory import DirectoryStore
from components.finetune import model, program
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.gradients.packed_gradient import PackedGradient
from components.finetune.gradients.padded_gradient import PaddedGradient
from components.finetune.gradients.sharding import ShardedGradient

Add = Callable[..., Tensor]


def train_all(process_group: ProcessGroup, runs: dict[str, dict[str, Any]], work: str) -> dict[str, Any]:
    """Each run's figures, or the exit code and message of its error.

    ``fault`` names one of FAULTS; ``packed``: texts are packed, as GPUs do it; ``phases`` says how many there were in
    the largest batch then.
    """
    found = {}
    for name, given in runs.items():
        told = ("fault", "packed", "data")
        settings = FinetuneConfig(**{key: value for key, value in given.items() if key not in told})
        phases = [0]
        place = Path(work) / name
        if process_group.is_main:
            place.mkdir(parents=True)
        process_group.barrier()
        places = {"checkpoint": place / "checkpoint", "training_report": place / "report.html"}
        kind = ShardedGradient if settings.parallelism == "fsdp" else PaddedGradient
        if given.get("packed"):
            kind = PackedGradient
        fault = FAULTS[given["fault"]](process_group, kind.backward_pass) if "fault" in given else kind.backward_pass
        made = _packed if kind is PackedGradient else model.select_gradient
        counted = _counting(phases)
        with (
            patch.object(kind, "backward_pass", fault),
            patch.object(model, "select_gradient", made),
            patch.object(contrastive, "plan_phases", counted),
        ):
            try:
                found[name] = program.train(process_group, settings, training_data=Path(given["data"]), **places)
                found[name]["phases"] = max(phases)
            except StageError as error:
                found[name] = {"exit_code": error.exit_code, "message": str(error)}
    return found


def _counting(phases: list[int]) -> Callable[..., list[Phase]]:
    """``plan_phases`` that writes down how many phases it found."""

    def counting(*arguments: Any, **named: Any) -> list[Phase]:
        found = plan_phases(*arguments, **named)
        phases.append(len(found))
        return found

    return counting


def _packed(
    encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype, process_group: ProcessGroup
) -> PackedGradient:
    return PackedGradient(encoder, config, dtype, process_group, compiled=False)


def train_with_too_little_memory(
    process_group: ProcessGroup, settings: dict[str, Any], data: str, work: str
) -> dict[str, Any]:
    """One training whose memory runs out on rank 1; what it raises ends the rank."""
    config = FinetuneConfig(**settings)
    places = {"checkpoint": Path(work) / "checkpoint", "training_report": Path(work) / "report.html"}
    with patch.object(
        ShardedGradient, "backward_pass", FAULTS["out of memory"](process_group, ShardedGradient.backward_pass)
    ):
        return program.train(process_group, config, training_data=Path(data), **places)


def train_with_slow_storage(
    process_group: ProcessGroup, settings: dict[str, Any], data: str, work: str
) -> dict[str, Any]:
    """One training whose second state takes longer to write than anybody waits; a file ``writing`` says it began."""
    config = FinetuneConfig(**settings)
    places = {"checkpoint": Path(work) / "checkpoint", "training_report": Path(work) / "report.html"}
    write, states = DirectoryStore.write, 0

    def slowly(self: DirectoryStore, name: str, body: bytes) -> None:
        nonlocal states
        write(self, name, body)
        states += name.endswith("tensors-00000.safetensors")
        if states == 2:
            (Path(work) / "writing").touch()
            time.sleep(3600)

    with patch.object(DirectoryStore, "write", slowly):
        return program.train(process_group, config, training_data=Path(data), **places)


def _on_second_rank(what: Callable[[Tensor, int], Tensor]) -> Callable[[ProcessGroup, Add], Add]:
    """``what`` of the loss and the number of the pass, on rank 1, after its gradient was added."""

    def wrap(process_group: ProcessGroup, add: Add) -> Add:
        passes = 0

        def wrapped(self: PaddedGradient, batch: Batch, share: float) -> Tensor:
            nonlocal passes
            passes += 1
            loss = add(self, batch, share)
            return what(loss, passes) if process_group.rank == 1 else loss

        return wrapped

    return wrap


def _memory_runs_out(loss: Tensor, passes: int) -> Tensor:
    if passes == 2:
        raise torch.OutOfMemoryError("simulated")
    return loss


class _MemoryRunsOutAt(TorchDispatchMode):
    """In the first operation of this name."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == self.operation:
            raise torch.OutOfMemoryError(f"simulated in {self.operation}")
        return func(*args, **(kwargs or {}))


def _memory_runs_out_at(operation: str) -> Callable[[ProcessGroup, Add], Add]:
    """On rank 1, in its second pass."""

    def wrap(process_group: ProcessGroup, add: Add) -> Add:
        passes = 0

        def wrapped(self: PaddedGradient, batch: Batch, share: float) -> Tensor:
            nonlocal passes
            passes += 1
            if process_group.rank == 1 and passes == 2:
                with _MemoryRunsOutAt(operation):
                    add(self, batch, share)
                raise AssertionError(f"{operation} was never called")
            return add(self, batch, share)

        return wrapped

    return wrap


def _is_terminated(loss: Tensor, passes: int) -> Tensor:
    if passes == 5:
        signal.raise_signal(signal.SIGTERM)
    return loss


FAULTS = {
    "out of memory": _on_second_rank(_memory_runs_out),
    "not a number": _on_second_rank(lambda loss, passes: loss * (torch.nan if passes == 3 else 1)),
    # While texts are encoded, vectors gathered, the loss computed, the gradient computed.
    **{
        f"out of memory in {operation}": _memory_runs_out_at(operation)
        for operation in ("embedding", "new_zeros", "_log_softmax", "embedding_dense_backward", "index_put_")
    },
    "terminated": _on_second_rank(_is_terminated),
}
