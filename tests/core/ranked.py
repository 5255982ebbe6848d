"""What the ranks of tests/core/test_launch.py do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from components.core.distributed.process_group import ProcessGroup
from components.core.errors import ActionNeeded, InputError, Transient


def agree(process_group: ProcessGroup, offset: int) -> dict[str, Any]:
    mine = torch.tensor([1.5, -2.0, 2.0**-12]) * (process_group.rank + 1)
    narrow = mine.clone()
    process_group.all_reduce_in_buckets([mine[:1], mine[1:]], torch.float32, bucket_bytes=8)
    process_group.all_reduce_in_buckets([narrow], torch.bfloat16)
    told = torch.full((2,), float(process_group.rank))
    process_group.broadcast_tensor(told)
    return {
        "size": process_group.size,
        "total": process_group.all_reduce_sum(offset, process_group.rank),
        "greatest": process_group.all_reduce_max(process_group.rank),
        "any": [process_group.all_reduce_any(process_group.rank == 1), process_group.all_reduce_any(False)],
        "from_first": process_group.broadcast_object({"rank": process_group.rank}),
        "told": told.tolist(),
        "sum": mine.tolist(),
        "narrow": narrow.tolist(),
    }


def gather(process_group: ProcessGroup) -> dict[str, Any]:
    """The gradient of a loss over the vectors of both ranks."""
    own = torch.tensor([[1.0, 2.0]]) + process_group.rank
    weight = torch.tensor(3.0, requires_grad=True)
    matrix = process_group.gather_rows(own * weight, [1 - process_group.rank], 2)
    (matrix[0] @ matrix[1]).backward()
    process_group.all_reduce_in_buckets([weight.grad], torch.float32)
    return {"matrix": matrix.tolist(), "gradient": weight.grad.item()}


def fail(process_group: ProcessGroup, how: str) -> None:
    if process_group.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stands still":
            os._exit(75)
        if how == "bug":
            raise ZeroDivisionError("no such case")
        raise {"input": InputError, "action": ActionNeeded}[how]("valve 7 is open: close it")
    process_group.barrier()


def last_words(process_group: ProcessGroup, file: str) -> None:
    """Waits for SIGTERM."""

    def stop(*_: Any) -> None:
        raise Transient(f"rank {process_group.rank} saved its work: run again")

    signal.signal(signal.SIGTERM, stop)
    Path(f"{file}.{process_group.rank}").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(3600)
