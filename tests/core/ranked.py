"""What the ranks of tests/core/test_launch.py do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from components.core.distributed.process_group import Ranks
from components.core.errors import ActionNeeded, InputError, Transient


def agree(ranks: Ranks, offset: int) -> dict[str, Any]:
    mine = torch.tensor([1.5, -2.0, 2.0**-12]) * (ranks.rank + 1)
    narrow = mine.clone()
    ranks.add_up([mine[:1], mine[1:]], torch.float32, bucket_bytes=8)
    ranks.add_up([narrow], torch.bfloat16)
    told = torch.full((2,), float(ranks.rank))
    ranks.copy_from_first(told)
    return {
        "size": ranks.size,
        "total": ranks.total(offset, ranks.rank),
        "greatest": ranks.greatest(ranks.rank),
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "from_first": ranks.from_first({"rank": ranks.rank}),
        "told": told.tolist(),
        "sum": mine.tolist(),
        "narrow": narrow.tolist(),
    }


def gather(ranks: Ranks) -> dict[str, Any]:
    """The gradient of a loss over the vectors of both ranks."""
    own = torch.tensor([[1.0, 2.0]]) + ranks.rank
    weight = torch.tensor(3.0, requires_grad=True)
    matrix = ranks.rows_of_all(own * weight, [1 - ranks.rank], 2)
    (matrix[0] @ matrix[1]).backward()
    ranks.add_up([weight.grad], torch.float32)
    return {"matrix": matrix.tolist(), "gradient": weight.grad.item()}


def fail(ranks: Ranks, how: str) -> None:
    if ranks.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stands still":
            os._exit(75)
        if how == "bug":
            raise ZeroDivisionError("no such case")
        raise {"input": InputError, "action": ActionNeeded}[how]("valve 7 is open: close it")
    ranks.wait()


def last_words(ranks: Ranks, file: str) -> None:
    """Waits for SIGTERM."""

    def stop(*_: Any) -> None:
        raise Transient(f"rank {ranks.rank} saved its work: run again")

    signal.signal(signal.SIGTERM, stop)
    Path(f"{file}.{ranks.rank}").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)
