"""The processes that work on one thing together, one per GPU ("ranks"), and what they tell each other."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components.core.distributed.transfer import to_device

Result = TypeVar("Result")

# Of one collective, while nobody has joined with another one: longer than any watchdog waits.
_PATIENCE = datetime.timedelta(hours=2)


class OutOfMemoryEverywhere(torch.OutOfMemoryError):
    """Memory ran out on at least one rank, and all ranks know: what ``Ranks.agreed`` computes must not raise it."""


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of ``size``, numbered from 0. A process of its own is the only one of its group.

    Every method but the properties is collective: all ranks call the same ones in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: it writes, saves and logs."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def total(self, *values: float) -> list[float]:
        """The sum of each of ``values`` over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def greatest(self, *values: float) -> list[float]:
        """The greatest of each of ``values`` over all ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def any(self, value: bool) -> bool:
        """Whether ``value`` holds on one rank at least."""
        return self.greatest(float(value))[0] > 0

    def agreed(self, compute: Callable[[], Result]) -> Result:
        """``compute()``; raises OutOfMemoryEverywhere on all ranks when the memory of one of them does not suffice.

        Needed before a collective on what was computed: the others would wait in it. A process of its own raises what
        ``compute`` does.
        """
        if not self.several:
            return compute()
        result = None
        # Left before asking: until then the exception holds on to the tensors of what failed.
        with contextlib.suppress(torch.OutOfMemoryError):
            result = compute()
        if self.any(result is None):
            raise OutOfMemoryEverywhere("on one process at least")
        return result

    def from_first(self, value: Any) -> Any:
        """The first rank's ``value``, everywhere; what pickles."""
        if not self.several:
            return value
        carried = [value]
        dist.broadcast_object_list(carried, device=torch.device("cpu"))
        return carried[0]

    def copy_from_first(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` with the first rank's."""
        if self.several:
            dist.broadcast(tensor, 0)

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor], dtype: torch.dtype, *, bucket_bytes: int = 256 * 1024**2) -> None:
        """Replace each of ``tensors`` by its sum over all ranks, which is the same bits everywhere.

        Sums are carried out in ``dtype``, in buckets that fill the network; ``tensors`` have the same shapes on all
        ranks and lie on one device.
        """
        if not self.several:
            return
        for bucket in _buckets(list(tensors), dtype, bucket_bytes):
            joined = torch.cat([tensor.flatten().to(dtype) for tensor in bucket])
            dist.all_reduce(joined)
            parts = joined.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(to) for part, to in zip(parts, bucket, strict=True)])

    def rows_of_all(self, own: Tensor, rows: Sequence[int], count: int) -> Tensor:
        """The [count, d] matrix whose rows ``rows`` are ``own`` here and other rows are other ranks'.

        Each row belongs to one rank. The backward pass hands each rank the gradient of its own rows, so every rank
        that computes the same loss of the whole matrix gets its share of the loss' gradient. Raises
        OutOfMemoryEverywhere.
        """
        places, every = self.agreed(lambda: _placed(own.detach(), rows, count))
        return _Rows.apply(own, places, every, self.several)

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.several:
            dist.barrier() if not torch.cuda.is_available() else dist.barrier(device_ids=[torch.cuda.current_device()])

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp) -> list[float]:
        if not self.several:
            return list(values)
        carried = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(carried, how)
        return carried.tolist()


def join() -> Ranks:
    """Join the group that torchrun's environment describes; each process takes the GPU of its number.

    Without such an environment the process is alone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        return Ranks()
    # Small things are agreed on over the CPU: that waits for no kernel.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), size)


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(tensors: list[Tensor], dtype: torch.dtype, most: int) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() * dtype.itemsize > most:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * dtype.itemsize
    if bucket:
        yield bucket


def _placed(own: Tensor, rows: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """``rows`` on the device, and [count, d] with ``own`` at them and zeros elsewhere."""
    places = to_device(np.array(rows, dtype=np.int64), own.device)
    every = own.new_zeros((count, own.shape[1]))
    every[places] = own
    return places, every


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _own: Tensor, places: Tensor, every: Tensor, several: bool) -> Tensor:
        ctx.save_for_backward(places)
        ctx.mark_dirty(every)
        if several:
            dist.all_reduce(every)
        return every

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return gradient[places], None, None, None
