"""The gradient of one optimizer step: of all ranks, clipped, and repeated in smaller passes where memory runs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from components.core.distributed.process_group import DistributedOutOfMemoryError, ProcessGroup
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import TRAINING_FILE
from components.finetune.gradients.gradient import Gradient, NotRepeatableOutOfMemoryError, StepLoss
from components.finetune.gradients.sharding import gather_full

_log = logging.getLogger(__name__)


class ComputedGradient(NamedTuple):
    """Mean loss of a batch, tokens of its texts, each counted once, and the norm of its gradient before clipping."""

    loss: float
    tokens: int
    norm: float


class StepGradient:
    """Computes the gradient of the mean loss of a batch of ``data``, however ``gradient`` has to split it.

    ``total_steps``: how many the training has, for messages. ``beat`` is called after each pass: work goes on.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TokenizedData,
        gradient: Gradient,
        process_group: ProcessGroup,
        *,
        max_norm: float,
        total_steps: int,
        beat: Callable[[], None],
    ) -> None:
        self._encoder, self._data, self._gradient, self._process_group = encoder, data, gradient, process_group
        self._max_norm, self._total_steps, self._beat = max_norm, total_steps, beat

    def compute(self, step: int, rows: Sequence[int]) -> ComputedGradient:
        """Add the gradient of the mean loss of the examples ``rows``, summed over all ranks and clipped.

        ``step`` is the number of the optimizer step, from 0. When memory runs out on one rank, all repeat the batch in
        smaller passes.

        Raises:
            InputError: If not even one query fits into memory.
            ActionNeeded: If the loss or the norm is no finite number, or memory runs out in a sharded model.
        """
        while True:
            step_loss: StepLoss | None = None
            is_known_everywhere = False
            try:
                step_loss = self._gradient.accumulate(self._data, rows, self._beat)
            except torch.OutOfMemoryError as error:
                # Left before trying again: until then the exception keeps the tensors of the failed pass alive.
                is_known_everywhere = isinstance(error, DistributedOutOfMemoryError)
            except NotRepeatableOutOfMemoryError as error:
                raise ActionNeeded(f"step {step + 1} of {self._total_steps}: {error}") from None
            ran_out = is_known_everywhere or self._process_group.all_reduce_any(step_loss is None)
            if step_loss is not None and not ran_out:
                break
            self._halve_passes(step)
        (loss,) = self._process_group.all_reduce_sum(step_loss.value)
        if not math.isfinite(loss):
            raise self._diverged(step, f"loss {loss}", step_loss.rows)
        self._gradient.all_reduce()
        norm = gather_full(nn.utils.clip_grad_norm_(self._encoder.parameters(), self._max_norm)).item()
        if not math.isfinite(norm):
            raise self._diverged(step, f"gradient norm {norm}", rows)
        return ComputedGradient(loss, step_loss.tokens, norm)

    def _halve_passes(self, step: int) -> None:
        self._gradient.discard()
        pass_size = self._gradient.halve_passes()
        if pass_size is None:
            raise InputError(
                f"step {step + 1}: a single query with its passages does not fit into the memory of "
                f"{self._encoder.device}: lower passage_max_length or train_n_passages, or take a larger GPU"
            )
        _log.warning("step %d: out of memory; repeated with passes of %s", step + 1, pass_size)
        if self._encoder.device.type == "cuda":
            torch.cuda.empty_cache()

    def _diverged(self, step: int, problem: str, rows: Sequence[int]) -> ActionNeeded:
        examples = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        return ActionNeeded(
            f"step {step + 1} of {self._total_steps}: {problem}: training diverged and nothing was saved after step "
            f"{step}; lower learning_rate or raise temperature, or look at data[{examples}] of {TRAINING_FILE}"
        )
