"""The gradient of one optimizer step: of all ranks, in as many passes as memory needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from components.core.distributed.process_group import DistributedOutOfMemoryError, ProcessGroup
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError
from components.finetune.data.batch import Batch
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import TRAINING_FILE
from components.finetune.gradients.gradient import Gradient
from components.finetune.gradients.reduction import own_queries
from components.finetune.gradients.sharding import whole

_log = logging.getLogger(__name__)


class StepGradient:
    """The gradient of the mean loss of a batch of ``data``, however ``gradient`` has to cut it up.

    ``steps``: how many the training has, for messages. ``beat`` is called after each pass: work goes on.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TokenizedData,
        gradient: Gradient,
        process_group: ProcessGroup,
        *,
        max_norm: float,
        steps: int,
        beat: Callable[[], None],
    ) -> None:
        self._encoder, self._data, self._gradient, self._process_group = encoder, data, gradient, process_group
        self._max_norm, self._steps, self._beat = max_norm, steps, beat

    def add(self, number: int, rows: Sequence[int]) -> tuple[float, int, float]:
        """Mean loss of ``rows``, tokens of their texts, each counted once, and the norm of the gradient.

        The gradient is the sum over all ranks, clipped to ``max_norm``. ``number`` is the step's, from 0. When memory
        runs out the batch is repeated in smaller passes. Raises InputError when not even one query fits, ActionNeeded
        for a loss or norm that is no finite number and for memory that runs out in a model spread over the ranks.
        """
        loss, tokens = self._mean_loss(number, rows)
        self._gradient.add_up()
        norm = whole(nn.utils.clip_grad_norm_(self._encoder.parameters(), self._max_norm)).item()
        if not math.isfinite(norm):
            raise self._diverged(number, f"gradient norm {norm}", rows)
        return loss, tokens, norm

    def _mean_loss(self, number: int, rows: Sequence[int]) -> tuple[float, int]:
        while True:
            done = self._passes_of_all(number, rows)
            if done is not None:
                return done
            self._gradient.discard()
            smaller = self._gradient.halve()
            if smaller is None:
                raise InputError(
                    f"step {number + 1}: a single query with its passages does not fit into the memory of "
                    f"{self._encoder.device}: lower passage_max_length or train_n_passages, or take a larger GPU"
                )
            _log.warning("step %d: out of memory; repeated with passes of %s", number + 1, smaller)
            if self._encoder.device.type == "cuda":
                torch.cuda.empty_cache()

    def _passes_of_all(self, number: int, rows: Sequence[int]) -> tuple[float, int] | None:
        """Mean loss of ``rows`` and their tokens on all ranks; None when one rank's memory did not suffice."""
        done, all_know = None, False
        try:
            done = self._passes(number, rows)
        except torch.OutOfMemoryError as error:
            # Left before trying again: until then the exception holds on to the tensors of the failed pass.
            if self._gradient.in_step:
                raise self._memory_ran_out(number) from None
            all_know = isinstance(error, DistributedOutOfMemoryError)
        if all_know or self._process_group.all_reduce_any(done is None):
            return None
        if not self._process_group.is_distributed:
            return done
        (loss,) = self._process_group.all_reduce_sum(done[0])
        if not math.isfinite(loss):
            raise self._diverged(number, f"loss {loss}", rows)
        return loss, done[1]

    def _passes(self, number: int, rows: Sequence[int]) -> tuple[float, int]:
        """This rank's part of the mean loss of ``rows``, and the tokens of all their texts."""
        batch = self._data.batch(rows)
        total = 0.0
        for part in self._parts(rows, batch):
            own = batch if part == rows else self._data.batch(part)
            loss = self._gradient.add(own, 1 / len(rows)).item()
            # Several ranks stop together, after the step's last pass.
            if not math.isfinite(loss) and not self._process_group.is_distributed:
                raise self._diverged(number, f"loss {loss}", part)
            total += loss
            self._beat()
        return total, batch.tokens

    def _parts(self, rows: Sequence[int], batch: Batch) -> list[Sequence[int]]:
        """What this rank computes of the batch ``rows``, pass by pass."""
        own = rows
        if self._process_group.is_distributed and not self._gradient.together:
            own = [rows[query] for query in own_queries(batch, self._process_group)]
        size = self._gradient.queries or max(1, len(own))
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        if self._gradient.in_step:
            parts += [[]] * (int(self._process_group.all_reduce_max(len(parts))[0]) - len(parts))
        return parts

    def _memory_ran_out(self, number: int) -> ActionNeeded:
        return ActionNeeded(
            f"step {number + 1} of {self._steps}: out of memory on {self._encoder.device}; with fsdp the other GPUs "
            f"wait inside of the model, so the step cannot be repeated in smaller passes: set local_batch_size below "
            f"{self._gradient.queries}, or lower passage_max_length, or take more GPUs, and run again"
        )

    def _diverged(self, number: int, what: str, rows: Sequence[int]) -> ActionNeeded:
        places = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        return ActionNeeded(
            f"step {number + 1} of {self._steps}: {what}: training diverged and nothing was saved after step {number}; "
            f"lower learning_rate or raise temperature, or look at data[{places}] of {TRAINING_FILE}"
        )
