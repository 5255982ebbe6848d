"""What a training is going to be, said before it costs anything: steps, work, memory, and what looks wrong."""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Iterator

import torch

from components.core.distributed.process_group import ProcessGroup
from components.finetune.component import FinetuneConfig
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import batches
from components.finetune.observe.memory import estimate
from components.finetune.observe.watch import Watch

_log = logging.getLogger(__name__)
FEW_STEPS = 50
_LOOKED_AT = 20  # batches from which the others are guessed


def log_plan(
    config: FinetuneConfig,
    data: TokenizedData,
    watch: Watch,
    *,
    process_group: ProcessGroup,
    batch_size: int,
    total: int,
    dtype: torch.dtype,
    device: torch.device,
    validates: bool,
) -> None:
    """Log it."""
    examples = len(data.data.examples)
    arithmetic = "fp8" if config.precision == "fp8" else str(dtype).removeprefix("torch.")
    _log.info(
        "%d examples, %d epochs, %d steps of %d queries, %d passages each, %s on %d x %s",
        examples, config.num_epochs, total, batch_size, config.train_n_passages, arithmetic, process_group.size,
        device.type,
    )  # fmt: skip
    if batch_size != config.global_batch_size:
        _log.info("global_batch_size %d became %d for so few examples", config.global_batch_size, batch_size)
    tokens = total * statistics.fmean(_tokens_of_steps(data, batch_size, config))
    work = tokens * watch.flops_per_token
    least = f", {work / watch.peak / 60:.1f} min at the peak of {watch.chip}" if watch.peak else ""
    _log.info("about %.2f million tokens, %.3g PFLOP%s", tokens / 1e6, work / 1e15, least)
    if device.type == "cuda":
        needed, there = estimate(config, dtype), torch.cuda.get_device_properties(device).total_memory
        _log.info(
            "about %.0f GB of a GPU's %.0f: %.0f for weights, gradients and optimizer, %.0f for activations",
            needed.total / 1e9, there / 1e9, needed.states / 1e9, needed.activations / 1e9,
        )  # fmt: skip
    for warning in warnings(config, data, total=total, validates=validates):
        _log.warning("%s", warning)


def warnings(config: FinetuneConfig, data: TokenizedData, *, total: int, validates: bool) -> Iterator[str]:
    """What may disappoint, the recipe's own warnings among it."""
    if total < FEW_STEPS:
        yield f"only {total} steps: more epochs, more data or a smaller batch may be needed"
    negatives = statistics.median(len(example.negatives) for example in data.data.examples)
    if negatives < config.train_n_passages - 1:
        wanted = config.train_n_passages - 1
        yield f"half of the examples have {negatives:g} negatives or fewer, {wanted} are used: they repeat"
    if config.early_stopping_patience is not None and not validates:
        yield "early_stopping_patience has no effect without a val split: set val_ratio of prep, and val_every_steps"


def _tokens_of_steps(data: TokenizedData, batch_size: int, config: FinetuneConfig) -> list[int]:
    """Tokens of the first steps, a passage that repeats within a step counted once, as it is encoded."""
    order = batches(len(data.data.examples), batch_size, 1, config.seed)
    return [data.batch(rows).tokens for _, rows in itertools.islice(order, _LOOKED_AT)]
