"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded
from components.core.progress import Progress
from components.finetune.component import FinetuneConfig
from components.finetune.data import Example, TrainingData, batch_size, batches, steps
from components.finetune.gradient import Batch, gradient_of
from components.finetune.schedule import build_optimizer, learning_rate


@dataclass(frozen=True)
class Step:
    """What one optimizer step did: a line of ``training.jsonl``."""

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float


class Trainer:
    """Trains ``encoder`` in place. Weights are float32; ``dtype`` is that of the matrix products.

    Dropout stays off: batches are small, and a run can be repeated bit by bit on the same machine.
    """

    def __init__(self, encoder: Encoder, data: TrainingData, config: FinetuneConfig, dtype: torch.dtype) -> None:
        self.encoder, self.data, self.config = encoder.eval(), data, config
        self.batch_size = batch_size(config.global_batch_size, len(data.examples))
        self.total = steps(len(data.examples), self.batch_size, config.num_epochs)
        self._optimizer = build_optimizer(encoder, config)
        self._gradient = gradient_of(encoder, config, dtype)
        self._ids = self._tokenize()

    def train(self, log: Path) -> list[Step]:
        """Run all steps, write one line each to ``log``, return them.

        Raises ActionNeeded before a step whose loss or gradient is no finite number.
        """
        done: list[Step] = []
        order = batches(len(self.data.examples), self.batch_size, self.config.num_epochs, self.config.seed)
        with log.open("w", encoding="utf-8") as out, Progress("training", total=self.total, unit="steps") as progress:
            for number, (epoch, rows) in enumerate(order):
                step = self._step(number, epoch, [self.data.examples[row] for row in rows])
                done.append(step)
                out.write(json.dumps(vars(step)) + "\n")
                progress.add(loss=step.loss, tokens_per_second=step.tokens_per_second)
        return done

    def _step(self, number: int, epoch: int, examples: Sequence[Example]) -> Step:
        """One optimizer step: the gradient is that of the mean loss over ``examples``, however they are cut up."""
        started = time.perf_counter()
        rate = learning_rate(number, self.total, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        size = len(examples) if self._gradient.whole_batches else self.config.local_batch_size
        parts = [self._batch(examples[start : start + size]) for start in range(0, len(examples), size)]
        total = sum(self._gradient.add(part, 1 / len(examples)).item() for part in parts)
        norm = nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.max_grad_norm).item()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ActionNeeded(
                f"step {number + 1}: loss {total}, gradient {norm}: training diverged and nothing was saved; "
                f"lower learning_rate or raise temperature"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradient.weights_changed()
        speed = sum(part.tokens for part in parts) / (time.perf_counter() - started)
        return Step(number + 1, epoch, round(total, 6), round(norm, 6), rate, round(speed, 1))

    def _batch(self, examples: Sequence[Example]) -> Batch:
        """Equal passages stand in it once."""
        slots = [self._passages_of(example) for example in examples]
        row = {name: number for number, name in enumerate(dict.fromkeys(name for names in slots for name in names))}
        return Batch(
            queries=[self._ids["query", example.query] for example in examples],
            passages=[self._ids["passage", name] for name in row],
            slots=[[row[name] for name in names] for names in slots],
            known=[{row[name] for name in self.data.answers[example.query] if name in row} for example in examples],
        )

    def _passages_of(self, example: Example) -> list[str]:
        """The positive and the hardest negatives; too few are repeated, as the recipe does."""
        wanted = self.config.train_n_passages - 1
        repeated = example.negatives * -(-wanted // len(example.negatives))
        return [example.positive, *repeated[:wanted]]

    def _tokenize(self) -> dict[tuple[str, str], list[int]]:
        """Token ids of every text that training sees, once."""
        queries = list(self.data.answers)
        names = list(dict.fromkeys(name for e in self.data.examples for name in self._passages_of(e)))
        ids = dict(zip((("query", q) for q in queries), self.encoder.tokenize(queries, "query"), strict=True))
        texts = [self.data.passages[name] for name in names]
        return ids | dict(zip((("passage", n) for n in names), self.encoder.tokenize(texts, "passage"), strict=True))
