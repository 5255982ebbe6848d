"""Fine-tunes the base model on training data and saves it as a Hugging Face directory."""

from __future__ import annotations

import importlib
import logging
import os
import statistics
from pathlib import Path
from typing import Any, cast

import torch

from components.core.distributed.launch import count_processes, launch
from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.checkpoint import default_device, load_base, save_checkpoint
from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.store import open_store
from components.finetune.component import FinetuneConfig
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import TrainingData, read_training_data
from components.finetune.lora import add_lora, merge_lora
from components.finetune.model import load_trainable
from components.finetune.observe.plan import log_plan
from components.finetune.observe.watch import Watch
from components.finetune.report import build_report
from components.finetune.resume.checkpoints import Checkpoints
from components.finetune.resume.identity import identity
from components.finetune.resume.training_state import set_weights
from components.finetune.trainer import Trainer
from components.finetune.validation import Selection, Validation, read_validation

_log = logging.getLogger(__name__)
LOG_FILE = "training.jsonl"


def run(config: FinetuneConfig, *, training_data: Path, checkpoint: Path, training_report: Path) -> dict[str, Any]:
    """Train on ``training_data``, write ``checkpoint`` and ``training_report``; return figures.

    Raises InputError for data that cannot be trained on or a batch that does not fit into memory, ActionNeeded when
    training diverges or ``checkpoint_uri`` cannot be written, Transient when interrupted. Nothing is published then.
    """
    _check_alone()
    places = {"training_data": training_data, "checkpoint": checkpoint, "training_report": training_report}
    if config.trainer == "trainjob":
        # Only who trains so needs the package kubernetes.
        trainjob = importlib.import_module("components.finetune.kubernetes.trainjob")
        metrics: dict[str, Any] = trainjob.run(config, **places)
        return metrics
    count = count_processes(config.num_processes)
    if count == 1:
        return train(ProcessGroup(), config, **places)
    arguments = {"settings": config.model_dump(mode="json"), **{name: str(path) for name, path in places.items()}}
    _log.info("%d processes train together", count)
    metrics = launch("components.finetune.program:train_rank", arguments, count)
    return metrics


def train_rank(process_group: ProcessGroup, settings: dict[str, Any], **places: str) -> dict[str, Any]:
    """``train`` as ``launch`` starts it."""
    return train(process_group, FinetuneConfig(**settings), **{name: Path(place) for name, place in places.items()})


def train(
    process_group: ProcessGroup, config: FinetuneConfig, *, training_data: Path, checkpoint: Path, training_report: Path
) -> dict[str, Any]:
    """``run`` by all ``process_group``; the first one writes, and returns the figures."""
    places = {"training_data": training_data, "checkpoint": checkpoint, "training_report": training_report}
    try:
        return _train(process_group, config, **places)
    except torch.OutOfMemoryError:
        raise InputError(
            f"weights, gradients and optimizer do not fit into the memory of {default_device()}: see that nothing else "
            f"runs on it (nvidia-smi), take a larger GPU, several with parallelism=fsdp, or lora_rank"
        ) from None


def _train(
    process_group: ProcessGroup, config: FinetuneConfig, *, training_data: Path, checkpoint: Path, training_report: Path
) -> dict[str, Any]:
    storage = None
    if config.checkpoint_uri and process_group.is_main:
        storage = open_store(config.checkpoint_uri, setting="checkpoint_uri")
    data = read_training_data(training_data, config.encoder())
    device = default_device()
    dtype = _dtype(config, device)
    torch.manual_seed(config.seed)
    model = load_trainable(config, process_group, dtype)
    encoder = model.encoder
    _check_dimensions(config, encoder)
    tokenized = TokenizedData(data, encoder, config)
    val = read_validation(training_data, data.passages, config.val_passages, config.seed)
    validation = Validation(val, encoder) if val else None
    checkpoints = None
    if storage is not None:
        same = identity(config, tokenized, validation, model.base_weights, dtype, device)
        checkpoints = Checkpoints(storage, same, keep=config.keep_checkpoints, where=str(config.checkpoint_uri))
    watch = Watch(encoder, tokenized.lengths, config, process_group)
    trainer = Trainer(
        encoder,
        tokenized,
        config,
        model.gradient,
        watch=watch,
        process_group=process_group,
        validation=validation,
        checkpoints=checkpoints,
    )
    if process_group.is_main:
        measured = bool(validation and config.val_every_steps)
        size = {"batch_size": trainer.batch_size, "total": trainer.total}
        log_plan(
            config,
            tokenized,
            watch,
            process_group=process_group,
            **size,
            dtype=dtype,
            device=device,
            validates=measured,
        )
        checkpoint.mkdir()
    done = None
    try:
        done = trainer.train(checkpoint / LOG_FILE if process_group.is_main else Path(os.devnull))
    finally:
        watch.close(complete=done is not None)
    if not process_group.is_main:
        return {}
    save_checkpoint(_finished(config, encoder, trainer, dtype), checkpoint)
    figures = _figures(data, trainer)
    training_report.write_text(
        build_report(config, done, trainer.selection.history, figures, chip=watch.chip), encoding="utf-8"
    )
    return figures


def _finished(config: FinetuneConfig, encoder: Encoder, trainer: Trainer, dtype: torch.dtype) -> Encoder:
    """The trained encoder, without what only training needs."""
    if trainer.sharded:
        # One rank holds a part of it: the base model again, with what was trained.
        encoder = load_base(config.encoder(), device=torch.device("cpu"), dtype=torch.float32)
        if config.lora_rank:
            add_lora(encoder, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    set_weights(encoder.backbone, trainer.result)
    merge_lora(encoder)
    # Saved in the arithmetic that the weights were trained for, as the base models are.
    cast(torch.nn.Module, encoder.backbone).to(dtype)
    return encoder


def _figures(data: TrainingData, trainer: Trainer) -> dict[str, Any]:
    done = trainer.done
    tail = done[-max(1, len(done) // 10) :]
    return {
        "examples": len(data.examples),
        "steps": len(done),
        "resumed_at_step": trainer.resumed_at,
        "batch_size": trainer.batch_size,
        "first_loss": done[0].loss,
        "last_loss": round(statistics.fmean(step.loss for step in tail), 6),
        "tokens_per_second": round(statistics.median(step.tokens_per_second for step in done), 1),
        **_utilization([step.mfu for step in done if step.mfu is not None]),
        **_validation_figures(trainer.selection),
    }


def _utilization(shares: list[float]) -> dict[str, float]:
    return {"mfu": round(statistics.median(shares), 4)} if shares else {}


def _validation_figures(selection: Selection) -> dict[str, Any]:
    """nDCG@10 on the val split before training and of the best model; nothing without a val split."""
    if selection.best is None:
        return {}
    values = dict(selection.history)
    base = {"base_val_ndcg_at_10": values[0]} if 0 in values else {}
    return {**base, "best_val_ndcg_at_10": selection.best, "best_step": selection.best_step}


def _check_alone() -> None:
    """Processes that a launcher starts side by side would each train, and write over each other's results."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1":
        raise InputError(
            f"WORLD_SIZE = {started}: finetune starts its processes itself: set num_processes, and start it without "
            f"torchrun or accelerate"
        )


def _check_dimensions(config: FinetuneConfig, encoder: Encoder) -> None:
    for size in config.matryoshka_dimensions:
        if size >= encoder.dimension:
            raise InputError(
                f"matryoshka_dimensions: vectors of {config.base_model} have {encoder.dimension} numbers and cannot be "
                f"cut to {size}: give smaller ones"
            )


def _dtype(config: FinetuneConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if config.precision == "fp32" else torch.bfloat16
