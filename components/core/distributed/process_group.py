"""The group of processes that compute one result together, one process per GPU, and its collective operations."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from components.core.distributed.transfer import to_device

Result = TypeVar("Result")

# Longer than any watchdog waits: a rank that hangs is reported by its watchdog, which says where it stood.
_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)


class DistributedOutOfMemoryError(torch.OutOfMemoryError):
    """Memory ran out on at least one rank, and every rank raises this error, so that no rank waits for another."""


@dataclass(frozen=True)
class ProcessGroup:
    """Process ``rank`` of ``size`` processes, numbered from 0. By default a group of one process.

    Every method except the properties is collective: all ranks call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which writes, saves and logs for the whole group."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Return whether the group has more than one process."""
        return self.size > 1

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return the sum of each of ``values`` over all ranks."""
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def all_reduce_max(self, *values: float) -> list[float]:
        """Return the maximum of each of ``values`` over all ranks."""
        return self._all_reduce(values, dist.ReduceOp.MAX)

    def all_reduce_any(self, value: bool) -> bool:
        """Return whether ``value`` is true on at least one rank."""
        return self.all_reduce_max(float(value))[0] > 0

    def run_on_all(self, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``, or raise on all ranks when one of them runs out of memory.

        Use it before a collective operation on the result: a rank that failed alone would leave the others waiting.

        Raises:
            DistributedOutOfMemoryError: On all ranks, when ``compute`` ran out of memory on at least one of several.
                ``compute`` must not raise this error itself. A group of one raises what ``compute`` raises.
        """
        if not self.is_distributed:
            return compute()
        result = None
        # The exception is dropped before the collective: until then it keeps the tensors of the failed pass alive.
        with contextlib.suppress(torch.OutOfMemoryError):
            result = compute()
        if self.all_reduce_any(result is None):
            raise DistributedOutOfMemoryError("on one process at least")
        assert result is not None
        return result

    def broadcast_object(self, value: Any) -> Any:
        """Return rank 0's ``value``, which must be picklable, on all ranks."""
        if not self.is_distributed:
            return value
        objects = [value]
        dist.broadcast_object_list(objects, device=torch.device("cpu"))
        return objects[0]

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` in place with rank 0's tensor of the same shape and dtype."""
        if self.is_distributed:
            dist.broadcast(tensor, 0)

    @torch.no_grad()
    def all_reduce_in_buckets(
        self, tensors: Iterable[Tensor], dtype: torch.dtype, *, bucket_bytes: int = 256 * 1024**2
    ) -> None:
        """Replace each of ``tensors`` in place by its sum over all ranks; all ranks get the same bits.

        Args:
            tensors: Tensors on one device, with the same shapes in the same order on all ranks.
            dtype: Type in which the sums are sent and computed.
            bucket_bytes: Tensors are concatenated up to this size, so that each message fills the network.
        """
        if not self.is_distributed:
            return
        for bucket in _split_into_buckets(list(tensors), dtype, bucket_bytes):
            flat = torch.cat([tensor.flatten().to(dtype) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(to) for part, to in zip(parts, bucket, strict=True)])

    def gather_rows(self, local: Tensor, rows: Sequence[int], count: int) -> Tensor:
        """Return the matrix [count, d] that all ranks fill: each puts ``local`` [len(rows), d] at ``rows``.

        Every row belongs to exactly one rank. The backward pass gives each rank the gradient of its own rows, so that
        ranks that compute the same loss of the whole matrix each get the gradient of what they encoded.

        Raises:
            DistributedOutOfMemoryError: On all ranks, when the matrix does not fit on one of them.
        """
        indices, matrix = self.run_on_all(lambda: _scatter_rows(local.detach(), rows, count))
        return _GatherRows.apply(local, indices, matrix, self.is_distributed)

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.is_distributed:
            dist.barrier() if not torch.cuda.is_available() else dist.barrier(device_ids=[torch.cuda.current_device()])

    def _all_reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if not self.is_distributed:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, operation)
        return reduced.tolist()


def init_process_group() -> ProcessGroup:
    """Join the group that torchrun's environment variables describe; each process takes the GPU of its local rank.

    Without these variables the process is a group of one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        return ProcessGroup()
    # Numbers and objects are exchanged over the CPU, which waits for no kernel.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT)
    return ProcessGroup(dist.get_rank(), size)


def destroy_process_group() -> None:
    """Leave the group that ``init_process_group`` joined, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _split_into_buckets(tensors: list[Tensor], dtype: torch.dtype, bucket_bytes: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() * dtype.itemsize > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * dtype.itemsize
    if bucket:
        yield bucket


def _scatter_rows(local: Tensor, rows: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """Return ``rows`` as int64 on the device, and [count, d] with ``local`` at these rows and zeros elsewhere."""
    indices = to_device(np.array(rows, dtype=np.int64), local.device)
    matrix = local.new_zeros((count, local.shape[1]))
    matrix[indices] = local
    return indices, matrix


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _local: Tensor, indices: Tensor, matrix: Tensor, is_distributed: bool) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.mark_dirty(matrix)
        if is_distributed:
            dist.all_reduce(matrix)
        return matrix

    @staticmethod
    def backward(ctx: Any, grad_matrix: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        return grad_matrix[indices], None, None, None
