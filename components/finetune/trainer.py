"""The training loop."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, Transient
from components.core.progress import Progress
from components.finetune.component import FinetuneConfig
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import batch_size, batches, steps
from components.finetune.gradients.gradient import Gradient
from components.finetune.gradients.step_gradient import StepGradient
from components.finetune.observe.watch import Watch
from components.finetune.resume.autosave import Autosave, State
from components.finetune.resume.checkpoints import Checkpoints
from components.finetune.resume.interruption import Interrupted, Interruption, Watchdog
from components.finetune.resume.training_state import TrainingState
from components.finetune.schedule import build_optimizer, interval, learning_rate
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
    mfu: float | None = None
    val_ndcg_at_10: float | None = None

    def figures(self) -> dict[str, float]:
        """Name and value of all that was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def line(self) -> str:
        """As JSON; a step after which nothing was measured says nothing about it."""
        return json.dumps(self.figures()) + "\n"


class Trainer:
    """Trains ``encoder`` in place, with the gradients that ``gradient`` computes. Weights are float32.

    All ranks make the same steps; rank 0 logs and saves. With ``checkpoints`` the state is kept there while training
    goes on, and training continues from the newest one. Dropout stays off: batches are small, and a run can be repeated
    bit by bit on the same kind of CPU, and of GPU over packed texts.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TokenizedData,
        config: FinetuneConfig,
        gradient: Gradient,
        *,
        watch: Watch,
        process_group: ProcessGroup | None = None,
        validation: Validation | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.process_group = process_group or ProcessGroup()
        self.encoder, self.data, self.config = encoder.eval(), data, config
        self.batch_size = batch_size(config.global_batch_size, len(data.data.examples))
        self.total = steps(len(data.data.examples), self.batch_size, config.num_epochs)
        self.done: list[Step] = []
        self.resumed_at = 0
        self.selection = Selection()
        self.result: dict[str, Tensor] = {}
        self._watch = watch
        self._optimizer = build_optimizer(encoder, config)
        self._gradient = gradient
        self._state = TrainingState(encoder.backbone, self._optimizer, self.process_group)
        self._validation = validation if config.val_every_steps else None
        self._autosave = Autosave(
            checkpoints,
            seconds=config.checkpoint_every_seconds,
            steps=interval(config.checkpoint_every_steps, self.total, config),
        )
        self._watchdog = Watchdog(config.hang_timeout_seconds)
        self._step_gradient = StepGradient(
            encoder,
            data,
            gradient,
            self.process_group,
            max_norm=config.max_grad_norm,
            total_steps=self.total,
            beat=self._watchdog.beat,
        )
        self._interruption = Interruption(self.process_group)

    @property
    def sharded(self) -> bool:
        """Whether every rank holds a part of the weights only."""
        return self._state.sharded

    def train(self, log: Path) -> list[Step]:
        """Run all steps that are left, write one line for each of the run to ``log``, return them.

        Raises what ``StepGradient.compute`` does, before weights have changed, and Transient when it is interrupted.
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
                self._watch.step(step.figures())
                progress.add(1, **self._watch.shown(step.figures()))
                self._watchdog.beat()
                if self._together(self._autosave.due(step.step)):
                    self._check_weights()
                    self._save()
                self._interruption.check()

    def _finish(self) -> None:
        """Keep the last state; then the best weights are the result."""
        self._check_weights()
        self._save()
        self._autosave.wait()
        if self.config.load_best_model_at_end and self.selection.best_step not in (0, len(self.done)):
            _log.info("the result is the model after step %d, the best on the val split", self.selection.best_step)
            self.result = self.selection.weights
        else:
            self.result = self._state.weights()

    def _save(self) -> None:
        """Keep the state after the last step, unless it is kept already."""
        if not self._together(not self._autosave.saved(len(self.done))):
            return
        if self.process_group.is_main:
            self._autosave.save(len(self.done), self._take)
        else:
            self._take()

    def _together(self, wanted: bool) -> bool:
        """Whether the first rank wants to save; others know only where it takes all to put the state together."""
        return (
            self.process_group.broadcast_object(wanted)
            if self._state.sharded
            else wanted and self.process_group.is_main
        )

    def _validates_after(self, step: int) -> bool:
        """Every so many steps, and after the last one."""
        every = interval(self.config.val_every_steps, self.total, self.config)
        return every is not None and (step % every == 0 or step == self.total)

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
            loss, tokens, norm = self._step_gradient.compute(number, rows)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradient.refresh_weights()
        speed = tokens / (time.perf_counter() - started)
        used = self._watch.utilization(speed)
        return Step(number + 1, epoch, round(loss, 6), round(norm, 6), rate, round(speed, 1), used)

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
        about = self.process_group.broadcast_object(saved.about if saved else None)
        if about is None:
            return
        tensors = dict(saved.tensors) if saved else {}
        best = {name.removeprefix(_BEST): tensors.pop(name) for name in list(tensors) if name.startswith(_BEST)}
        self._state.restore(tensors)
        self._gradient.refresh_weights()
        self.done = [Step(**step) for step in about["done"]]
        self.selection = Selection([(step, value) for step, value in about["val"]], best)
        for step in self.done:
            out.write(step.line())
            self._watch.step(step.figures())
        self.resumed_at = len(self.done)
        _log.info("continuing after step %d of %d, which an earlier attempt saved", len(self.done), self.total)

    def _interrupted(self) -> Transient:
        """Save what is done; the message says whether that worked."""
        where = f"interrupted after step {len(self.done)}"
        if self.done:
            self._save()
        if not self.process_group.all_reduce_any(self._autosave.enabled):
            return Transient(f"{where}: set checkpoint_uri and the next run continues")
        # Only the first rank knows, and it may be killed before: then no other speaks for it.
        kept = self.process_group.broadcast_object(self._autosave.wait())
        what = "its state is saved" if kept else "its state could not be saved, an earlier one stands"
        return Transient(f"{where}; {what}: run again to continue")
