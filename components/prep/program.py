"""Turns questions and passages into training data with hard negatives, and a test set that training never sees."""

from __future__ import annotations

import logging
import statistics
from pathlib import Path
from typing import Any

from components.core.encoder.checkpoint import load_base
from components.core.errors import InputError
from components.prep.component import PrepConfig
from components.prep.mining import mine
from components.prep.records import Records, read_records
from components.prep.split import Split, split
from components.prep.write import write_eval_data, write_training_data

_log = logging.getLogger(__name__)
FEW_EVAL_QUERIES = 50
FEW_TRAINING_EXAMPLES = 100


def run(config: PrepConfig, *, qa_pairs: Path, training_data: Path, eval_data: Path) -> dict[str, Any]:
    """Read ``qa_pairs``, split, mine, write ``training_data`` and ``eval_data``; return counts.

    Raises InputError when no question is left, or when the split leaves a side empty.
    """
    records = read_records(qa_pairs, quality_threshold=config.quality_threshold, max_positives=config.max_pos_docs)
    parts = split(records, train_ratio=config.train_ratio, val_ratio=config.val_ratio, seed=config.conversion_seed)
    _check(config, records, parts)
    mined = mine(
        load_base(config.encoder()),
        parts.train,
        parts.training_passages,
        count=config.hard_negatives_to_mine,
        margin=config.hard_neg_margin,
        query_block=config.mining_batch_size,
        batch_tokens=config.encode_batch_tokens,
    )
    found = [len(one.negatives) for one in mined]
    short = sum(count < config.hard_negatives_to_mine for count in found)
    _warn_short(config, found, short)
    rows = write_training_data(training_data, parts.train, mined, parts.val, parts.training_passages)
    config.encoder().write(training_data)
    write_eval_data(eval_data, parts.test, records.passages)
    return {
        "questions": len(records.examples),
        "dropped_questions": sum(records.dropped.values()) + parts.repeated_queries,
        "passages": len(records.passages),
        "train_questions": len(parts.train),
        "train_examples": rows,
        "val_questions": len(parts.val),
        "eval_queries": len(parts.test),
        "mined_negatives": sum(found),
        "questions_short_of_negatives": short,
    }


def _check(config: PrepConfig, records: Records, parts: Split) -> None:
    _log.info(
        "%d questions, %d passages; dropped: %s",
        len(records.examples),
        len(records.passages),
        dict(records.dropped) or "none",
    )
    _log.info("train %d, validation %d, test %d questions", len(parts.train), len(parts.val), len(parts.test))
    for name, side, wanted in (("train", parts.train, True), ("test", parts.test, config.test_ratio > 0)):
        if wanted and not side:
            raise InputError(
                f"the split leaves the {name} side empty ({len(records.examples)} questions, documents that share "
                f"text stay together): give more documents or change {name}_ratio"
            )
    if len(parts.test) < FEW_EVAL_QUERIES:
        _log.warning("only %d test questions: differences of a few points will be noise", len(parts.test))
    if len(parts.train) < FEW_TRAINING_EXAMPLES:
        _log.warning("only %d training questions: expect little", len(parts.train))


def _warn_short(config: PrepConfig, found: list[int], short: int) -> None:
    if not any(found):
        raise InputError(
            "no hard negative was found for any question: give more documents, or raise hard_neg_margin "
            f"({config.hard_neg_margin:g})"
        )
    if short:
        _log.warning(
            "%d of %d questions have fewer than %d negatives (median %g); training repeats those they have",
            short, len(found), config.hard_negatives_to_mine, statistics.median(found),
        )  # fmt: skip
