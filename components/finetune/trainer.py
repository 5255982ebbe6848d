"""The training loop."""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError, Transient
from components.core.progress import Progress
from components.finetune.autosave import Autosave, State
from components.finetune.checkpoints import Checkpoints
from components.finetune.component import FinetuneConfig
from components.finetune.data import TRAINING_FILE, batch_size, batches, steps
from components.finetune.gradient import gradient_of
from components.finetune.interruption import Interrupted, Interruption, Watchdog
from components.finetune.schedule import build_optimizer, learning_rate
from components.finetune.state import TrainingState
from components.finetune.tokenized import TokenizedData
from components.finetune.validation import Selection, Validation

_log = logging.getLogger(__name__)
_BEST = "best."


@dataclass(frozen=True)
class Step:
    """What one optimizer step did: a line of ``training.jsonl``."""

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    val_ndcg_at_10: float | None = None

    def line(self) -> str:
        """As JSON; a step after which nothing was measured says nothing about it."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None}) + "\n"


class Trainer:
    """Trains ``encoder`` in place. Weights are float32; ``dtype`` is that of the matrix products.

    With ``checkpoints`` the state is kept there while training goes on, and training continues from the newest one.
    Dropout stays off: batches are small, and a run can be repeated bit by bit on the same machine.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TokenizedData,
        config: FinetuneConfig,
        dtype: torch.dtype,
        *,
        validation: Validation | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.encoder, self.data, self.config = encoder.eval(), data, config
        self.batch_size = batch_size(config.global_batch_size, len(data.data.examples))
        self.total = steps(len(data.data.examples), self.batch_size, config.num_epochs)
        self.done: list[Step] = []
        self.resumed_at = 0
        self.selection = Selection()
        self._optimizer = build_optimizer(encoder, config)
        self._gradient = gradient_of(encoder, config, dtype)
        self._state = TrainingState(encoder.backbone, self._optimizer)
        self._validation = validation if config.val_every_steps else None
        self._autosave = Autosave(
            checkpoints, seconds=config.checkpoint_every_seconds, steps=config.checkpoint_every_steps
        )
        self._watchdog = Watchdog(config.hang_timeout_seconds)
        self._interruption = Interruption()

    def train(self, log: Path) -> list[Step]:
        """Run all steps that are left, write one line for each of the run to ``log``, return them.

        Raises ActionNeeded before a step whose loss or gradient is no finite number, InputError when not even one
        query fits into memory, Transient when it is interrupted.
        """
        with log.open("w", encoding="utf-8") as out:
            self._resume(out)
            try:
                with self._interruption, self._watchdog:
                    self._remaining_steps(out)
                    self._finish()
            except Interrupted:
                raise self._interrupted() from None
            finally:
                self._autosave.close()
        return self.done

    def _remaining_steps(self, out: TextIO) -> None:
        if not self.done:
            self._validate(0)
        order = batches(len(self.data.data.examples), self.batch_size, self.config.num_epochs, self.config.seed)
        with Progress("training", total=self.total - len(self.done), unit="steps") as progress:
            for number, (epoch, rows) in enumerate(itertools.islice(order, len(self.done), None), len(self.done)):
                if self._stops_early():
                    break
                step = self._step(number, epoch, rows)
                if self._validates_after(step.step):
                    step = replace(step, val_ndcg_at_10=self._validate(step.step))
                self.done.append(step)
                out.write(step.line())
                out.flush()
                progress.add(loss=step.loss, tokens_per_second=step.tokens_per_second)
                self._watchdog.beat()
                if self._autosave.due(step.step):
                    self._check_weights()
                    self._autosave.save(step.step, self._take)
                self._interruption.check()

    def _finish(self) -> None:
        """Keep the last state; then the best weights are the result."""
        self._check_weights()
        self._autosave.save(len(self.done), self._take)
        self._autosave.wait()
        if self.config.load_best_model_at_end and self.selection.best_step not in (0, len(self.done)):
            _log.info("the result is the model after step %d, the best on the val split", self.selection.best_step)
            self._state.set_weights(self.selection.weights)

    def _validates_after(self, step: int) -> bool:
        """Every so many steps, three times at least where there are as many steps, and after the last one."""
        every = self.config.val_every_steps
        return every is not None and (step % min(every, max(1, self.total // 3)) == 0 or step == self.total)

    def _validate(self, step: int) -> float | None:
        if self._validation is None:
            return None
        value = self._validation.ndcg(self._gradient.encode, self._watchdog.beat)
        self.selection.add(step, value, self._state.weights)
        _log.info("after step %d of %d: nDCG@10 %.4f on the val split", step, self.total, value)
        return value

    def _stops_early(self) -> bool:
        patience = self.config.early_stopping_patience
        if patience is None or self.selection.stale() < patience:
            return False
        _log.info("no better on the val split since step %d: training stops early", self.selection.best_step)
        return True

    def _step(self, number: int, epoch: int, rows: Sequence[int]) -> Step:
        """One optimizer step: the gradient is that of the mean loss over ``rows``, however they are cut up."""
        started = time.perf_counter()
        rate = learning_rate(number, self.total, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # Until the optimizer's turn nothing has changed, so an interruption can be followed at once.
        with self._interruption.at_once():
            loss, tokens = self._add_gradient(number, rows)
            norm = nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.max_grad_norm).item()
        if not math.isfinite(norm):
            raise self._diverged(number, f"gradient norm {norm}", rows)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradient.weights_changed()
        speed = tokens / (time.perf_counter() - started)
        return Step(number + 1, epoch, round(loss, 6), round(norm, 6), rate, round(speed, 1))

    def _add_gradient(self, number: int, rows: Sequence[int]) -> tuple[float, int]:
        """Mean loss of ``rows`` and their tokens. When memory runs out the batch is repeated in smaller passes."""
        while True:
            try:
                return self._passes(number, rows)
            except torch.OutOfMemoryError:
                # Left before trying again: until then the exception holds on to the tensors of the failed pass.
                pass
            self._gradient.discard()
            smaller = self._gradient.halve()
            if smaller is None:
                raise InputError(
                    f"step {number + 1}: a single query with its passages does not fit into the memory of "
                    f"{self.encoder.device}: lower passage_max_length or train_n_passages, or take a larger GPU"
                )
            _log.warning("step %d: out of memory; repeated with passes of %s", number + 1, smaller)
            if self.encoder.device.type == "cuda":
                torch.cuda.empty_cache()

    def _passes(self, number: int, rows: Sequence[int]) -> tuple[float, int]:
        size = len(rows) if self._gradient.whole_batches else self._gradient.queries
        total, tokens = 0.0, 0
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = self.data.batch(part)
            loss = self._gradient.add(batch, 1 / len(rows)).item()
            if not math.isfinite(loss):
                raise self._diverged(number, f"loss {loss}", part)
            total, tokens = total + loss, tokens + batch.tokens
            self._watchdog.beat()
        return total, tokens

    def _diverged(self, number: int, what: str, rows: Sequence[int]) -> ActionNeeded:
        places = ", ".join(str(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        return ActionNeeded(
            f"step {number + 1} of {self.total}: {what}: training diverged and nothing was saved after step {number}; "
            f"lower learning_rate or raise temperature, or look at data[{places}] of {TRAINING_FILE}"
        )

    def _check_weights(self) -> None:
        if not self._state.finite():
            raise ActionNeeded(
                f"step {len(self.done)} of {self.total}: weights are no finite numbers: training diverged and nothing "
                f"was saved; lower learning_rate"
            )

    def _take(self) -> State:
        best = {_BEST + name: tensor for name, tensor in self.selection.weights.items()}
        about = {"done": [asdict(step) for step in self.done], "val": self.selection.about()}
        return self._state.snapshot() | best, about

    def _resume(self, out: TextIO) -> None:
        saved = self._autosave.newest()
        if saved is None:
            return
        self._state.restore(saved.tensors)
        self._gradient.weights_changed()
        self.done = [Step(**step) for step in saved.about["done"]]
        best = {n.removeprefix(_BEST): tensor for n, tensor in saved.tensors.items() if n.startswith(_BEST)}
        self.selection = Selection([(step, value) for step, value in saved.about["val"]], best)
        out.writelines(step.line() for step in self.done)
        self.resumed_at = saved.step
        _log.info("continuing after step %d of %d, which an earlier attempt saved", saved.step, self.total)

    def _interrupted(self) -> Transient:
        """Save what is done; the message says whether that worked."""
        where = f"interrupted after step {len(self.done)}"
        if not self._autosave.enabled:
            return Transient(f"{where}: set checkpoint_uri and the next run continues")
        if self.done:
            self._autosave.save(len(self.done), self._take)
        kept = self._autosave.wait()
        what = "its state is saved" if kept else "its state could not be saved, an earlier one stands"
        return Transient(f"{where}; {what}: run again to continue")
