"""Turns questions and passages into training data with hard negatives, and a test set that training never sees."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.core.distributed.launch import count_processes
from components.core.encoder.config import read_encoder
from components.core.errors import InputError
from components.core.retrieval.beir_data import read_queries
from components.core.retrieval.encode_texts import EncodeOptions, ModelSource, TextGroup, encode_texts
from components.prep.component import PrepConfig
from components.prep.mine.hard_negatives import Choice
from components.prep.mine.mining import Embed, Mined, mine
from components.prep.mine.round_trip import round_trip
from components.prep.read.inputs import read_records
from components.prep.read.records import Records, Rules
from components.prep.report import build_report
from components.prep.split.frozen import copy_frozen, read_frozen
from components.prep.split.split import Split, split
from components.prep.write import write_eval_data, write_training_data

_log = logging.getLogger(__name__)
FEW_EVAL_QUERIES = 50
FEW_TRAINING_EXAMPLES = 100


def run(
    config: PrepConfig,
    *,
    qa_pairs: Path,
    golden_eval: Path | None = None,
    frozen_eval: Path | None = None,
    miner: Path | None = None,
    checker: Path | None = None,
    past_runs: Path | None = None,  # noqa: ARG001 -- the runner takes frozen_eval from it
    training_data: Path,
    eval_data: Path,
    data_report: Path,
) -> dict[str, Any]:
    """Read ``qa_pairs``, split, mine, write ``training_data``, ``eval_data`` and ``data_report``; return counts.

    With ``frozen_eval`` the test set is that one, unchanged. What ``golden_eval`` asks, training and validation do
    not. Negatives are mined with ``miner`` when it is given, else with the base model; what ``checker`` takes for an
    answer is no negative. Raises InputError when no question is left, or when the split leaves a side empty.
    """
    golden = frozenset(read_queries(golden_eval)[0].values()) if golden_eval else frozenset()
    return _prepare(config, qa_pairs, golden, frozen_eval, miner, checker, training_data, eval_data, data_report)


def _prepare(
    config: PrepConfig,
    qa_pairs: Path,
    golden: frozenset[str],
    frozen_eval: Path | None,
    miner: Path | None,
    checker: Path | None,
    training_data: Path,
    eval_data: Path,
    data_report: Path,
) -> dict[str, Any]:
    rules = Rules(config.quality_threshold, config.max_pos_docs, config.split_group_field, config.split_time_field)
    frozen = read_frozen(frozen_eval) if frozen_eval else None
    records = read_records(qa_pairs, rules)
    parts = split(
        records,
        train_ratio=config.train_ratio,
        val_ratio=config.val_ratio,
        seed=config.conversion_seed,
        near_duplicate_threshold=config.near_duplicate_threshold,
        by_time=config.split_time_field is not None,
        frozen=frozen,
        golden=golden,
    )
    warnings = _check(config, records, parts, frozen is not None)
    embed_by_miner = _embed_with(config, miner or config.encoder())
    if config.round_trip_top_k is not None:
        parts, embed_by_miner = round_trip(embed_by_miner, parts, config.round_trip_top_k)
    mined = mine(
        embed_by_miner,
        parts,
        _choice(config),
        query_block=config.mining_batch_size,
        check=_embed_with(config, checker) if checker else None,
    )
    warnings += _shortage(config, mined)
    for warning in warnings:
        _log.warning("%s", warning)
    trained = [(example, found) for example, found in zip(parts.train, mined, strict=True) if found.negatives]
    without = len(parts.train) - len(trained)
    parts = replace(parts, train=[example for example, _ in trained])
    mined = [found for _, found in trained]
    if without:
        parts.dropped["no passage may be its hard negative"] += without
    rows = write_training_data(
        training_data,
        parts.train,
        mined,
        parts.val,
        parts.training_passages,
        records.passages,
        mining=_mining(config, miner, checker),
    )
    config.encoder().write(training_data)
    if frozen_eval:
        copy_frozen(frozen_eval, eval_data)
    else:
        write_eval_data(eval_data, parts.test, records.passages)
    data_report.write_text(build_report(config, records, parts, mined, frozen, warnings), encoding="utf-8")
    return _counts(config, records, parts, mined) | {
        "train_examples": rows,
        "eval_queries": len(frozen.queries) if frozen else len(parts.test),
    }


def _embed_with(config: PrepConfig, model: ModelSource) -> Embed:
    """The vectors of the base model, or of a checkpoint."""
    options = EncodeOptions(
        config.encode_batch_tokens, config.embedding_cache_uri, count_processes(config.num_processes)
    )

    def embed_both(passages: Sequence[str], queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        groups = [TextGroup(passages, "passage", "encoding passages"), TextGroup(queries, "query", "encoding queries")]
        of_passages, of_queries = encode_texts(model, groups, options)
        return of_passages.vectors, of_queries.vectors

    return embed_both


def _mining(config: PrepConfig, miner: Path | None, checker: Path | None) -> dict[str, Any]:
    """How the negatives were mined; which checkpoints these were stands in the manifest."""
    settings = {name: getattr(config, name) for name in PrepConfig.model_fields if name.startswith("hard_neg")}
    encoder = read_encoder(miner) if miner else config.encoder()
    settings |= {"seed": config.conversion_seed, "miner": bool(miner), "checker": bool(checker)}
    return settings | {"encoder": encoder.model_dump(mode="json")}


def _choice(config: PrepConfig) -> Choice:
    return Choice(
        config.hard_negatives_to_mine,
        config.hard_neg_margin,
        config.hard_neg_absolute_margin,
        config.hard_neg_range_min,
        config.hard_neg_range_max,
        config.hard_neg_sampling,
        config.conversion_seed,
    )


def _check(config: PrepConfig, records: Records, parts: Split, frozen: bool) -> list[str]:
    """What to warn of before mining. Raises InputError for a side that is empty and should not be."""
    _log.info(
        "%d questions, %d passages; dropped: %s; by the split: %s",
        len(records.examples),
        len(records.passages),
        dict(records.dropped) or "none",
        dict(parts.dropped) or "none",
    )
    _log.info("train %d, validation %d, test %d questions", len(parts.train), len(parts.val), len(parts.test))
    for name, side, wanted in (
        ("train", parts.train, True),
        ("test", parts.test, config.test_ratio > 0 and not frozen),
    ):
        if wanted and not side:
            why = "".join(f"; {count} x {reason}" for reason, count in parts.dropped.items())
            raise InputError(
                f"the split leaves the {name} side empty ({len(records.examples)} questions, {parts.groups} groups of "
                f"documents that share answers or belong together{why}): give more documents or change {name}_ratio"
            )
    warnings = []
    if not frozen and len(parts.test) < FEW_EVAL_QUERIES:
        warnings.append(f"only {len(parts.test)} test questions: differences of a few points will be noise")
    if len(parts.train) < FEW_TRAINING_EXAMPLES:
        warnings.append(f"only {len(parts.train)} training questions: expect little")
    if parts.withheld_negatives:
        warnings.append(
            f"{parts.withheld_negatives} given negatives left out: their text stands in documents that are held out"
        )
    return warnings


def _shortage(config: PrepConfig, mined: list[Mined]) -> list[str]:
    """What to warn of after mining. Raises InputError when no question has a negative."""
    wanted = config.hard_negatives_to_mine
    found = [len(one.negatives) for one in mined]
    if not any(found):
        raise InputError(
            "no hard negative was found for any question: give more documents, or raise hard_neg_margin "
            f"({config.hard_neg_margin:g})"
        )
    warnings = []
    if short := sum(0 < count < wanted for count in found):
        warnings.append(
            f"{short} of {len(found)} questions have fewer than {wanted} negatives (median "
            f"{statistics.median(found):g}); training repeats those they have"
        )
    if none := found.count(0):
        warnings.append(f"{none} of {len(found)} questions have no negative at all and are left out")
    return warnings


def _counts(config: PrepConfig, records: Records, parts: Split, mined: list[Mined]) -> dict[str, Any]:
    found = [len(one.negatives) for one in mined]
    origins = [negative.origin for one in mined for negative in one.negatives]
    clusters = [parts.passage_clusters[text] for text in records.passages]
    return {
        "questions": len(records.examples),
        "dropped_questions": sum(records.dropped.values()) + sum(parts.dropped.values()),
        "passages": len(records.passages),
        "duplicate_passages": len(clusters) - len(set(clusters)),
        "withheld_passages": len(records.passages) - len(parts.training_passages),
        "train_questions": len(parts.train),
        "val_questions": len(parts.val),
        "mined_negatives": origins.count("mined") + origins.count("filled"),
        "given_negatives": origins.count("given"),
        "questions_short_of_negatives": sum(count < config.hard_negatives_to_mine for count in found),
        "passages_above_margin": sum(one.above for one in mined),
    }
