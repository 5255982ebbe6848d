"""Turns questions and passages into training data with hard negatives, and a test set that training never sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.core.distributed.launch import count_processes
from components.core.encoder.config import read_encoder
from components.core.retrieval.beir_data import read_queries
from components.core.retrieval.encode_texts import EncodeOptions, ModelSource, TextGroup, encode_texts
from components.prep.checks import check_negatives, check_split
from components.prep.component import HardNegativeSettings, PrepConfig
from components.prep.mine.mining import EncodePair, MinedExample, mine
from components.prep.mine.round_trip import filter_round_trip
from components.prep.read.inputs import read_records
from components.prep.read.records import Records
from components.prep.report import build_report
from components.prep.split.data_split import DataSplit, split_by_document
from components.prep.split.frozen import FrozenEval, copy_frozen_eval, read_frozen_eval
from components.prep.write import write_eval_data, write_training_data

_log = logging.getLogger(__name__)
_NO_NEGATIVE = "no passage may be its hard negative"


@dataclass(frozen=True)
class PrepPaths:
    """The artifacts that prep reads, None for those that are not given, and those that it writes."""

    qa_pairs: Path
    golden_eval: Path | None
    frozen_eval: Path | None
    miner: Path | None
    checker: Path | None
    training_data: Path
    eval_data: Path
    data_report: Path


@dataclass(frozen=True)
class PreparedData:
    """What was read and how it is split. ``mined`` belongs to ``split.train`` and is empty before mining."""

    records: Records
    split: DataSplit
    frozen: FrozenEval | None
    warnings: tuple[str, ...]
    mined: tuple[MinedExample, ...] = ()


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

    With ``frozen_eval`` the test set is that one, unchanged. Training and validation ask no question of
    ``golden_eval``. Negatives are mined with ``miner`` when it is given, else with the base model; a passage that
    ``checker`` takes for an answer is no negative. Raises InputError when no question is left, or when the split
    leaves a side empty.
    """
    paths = PrepPaths(qa_pairs, golden_eval, frozen_eval, miner, checker, training_data, eval_data, data_report)
    prepared = prepare(config, paths)
    prepared = mine_negatives(config, paths, prepared)
    for warning in prepared.warnings:
        _log.warning("%s", warning)
    prepared = drop_questions_without_negatives(prepared)
    rows = write(config, paths, prepared)
    return count(config, prepared, rows)


def prepare(config: PrepConfig, paths: PrepPaths) -> PreparedData:
    """Read the records and split them."""
    golden = frozenset(read_queries(paths.golden_eval)[0].values()) if paths.golden_eval else frozenset()
    frozen = read_frozen_eval(paths.frozen_eval) if paths.frozen_eval else None
    records = read_records(paths.qa_pairs, config)
    split = split_by_document(records, config, frozen=frozen, golden=golden)
    warnings = check_split(config, records, split, has_frozen_eval=frozen is not None)
    return PreparedData(records, split, frozen, tuple(warnings))


def mine_negatives(config: PrepConfig, paths: PrepPaths, prepared: PreparedData) -> PreparedData:
    """Mine hard negatives of the training questions, after the round-trip filter if it is set."""
    split, encode = prepared.split, _encode_with(config, paths.miner or config.encoder())
    if config.round_trip_top_k is not None:
        split, encode = filter_round_trip(encode, split, config.round_trip_top_k)
    mined = mine(encode, split, config, check=_encode_with(config, paths.checker) if paths.checker else None)
    warnings = (*prepared.warnings, *check_negatives(config, mined))
    return replace(prepared, split=split, mined=tuple(mined), warnings=warnings)


def drop_questions_without_negatives(prepared: PreparedData) -> PreparedData:
    """Leave out training questions for which mining found no negative, and count them."""
    kept = [pair for pair in zip(prepared.split.train, prepared.mined, strict=True) if pair[1].negatives]
    dropped = len(prepared.mined) - len(kept)
    split = replace(prepared.split, train=[example for example, _ in kept])
    if dropped:
        split.dropped[_NO_NEGATIVE] += dropped
    return replace(prepared, split=split, mined=tuple(mined for _, mined in kept))


def write(config: PrepConfig, paths: PrepPaths, prepared: PreparedData) -> int:
    """Write training data, test set and report; return the number of training records."""
    records, split = prepared.records, prepared.split
    rows = write_training_data(
        paths.training_data,
        split.train,
        prepared.mined,
        split.val,
        split.training_passages,
        records.passages,
        mining=_describe_mining(config, paths),
    )
    config.encoder().write(paths.training_data)
    if paths.frozen_eval:
        copy_frozen_eval(paths.frozen_eval, paths.eval_data)
    else:
        write_eval_data(paths.eval_data, split.test, records.passages)
    report = build_report(config, records, split, prepared.mined, prepared.frozen, prepared.warnings)
    paths.data_report.write_text(report, encoding="utf-8")
    return rows


def count(config: PrepConfig, prepared: PreparedData, training_records: int) -> dict[str, Any]:
    """Return the counts that the stage reports as its metrics."""
    records, split, mined = prepared.records, prepared.split, prepared.mined
    counts = [len(example.negatives) for example in mined]
    origins = [negative.origin for example in mined for negative in example.negatives]
    clusters = [split.passage_clusters[text] for text in records.passages]
    return {
        "questions": len(records.examples),
        "dropped_questions": sum(records.dropped.values()) + sum(split.dropped.values()),
        "passages": len(records.passages),
        "duplicate_passages": len(clusters) - len(set(clusters)),
        "withheld_passages": len(records.passages) - len(split.training_passages),
        "train_questions": len(split.train),
        "val_questions": len(split.val),
        "mined_negatives": origins.count("mined") + origins.count("filled"),
        "given_negatives": origins.count("given"),
        "questions_short_of_negatives": sum(number < config.hard_negatives_to_mine for number in counts),
        "passages_above_margin": sum(example.above for example in mined),
        "train_examples": training_records,
        "eval_queries": len(prepared.frozen.queries) if prepared.frozen else len(split.test),
    }


def _encode_with(config: PrepConfig, model: ModelSource) -> EncodePair:
    """Return a function that gives vectors of the base model, or of a checkpoint."""
    options = EncodeOptions(
        config.encode_batch_tokens, config.embedding_cache_uri, count_processes(config.num_processes)
    )

    def encode(passages: Sequence[str], queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        groups = [TextGroup(passages, "passage", "encoding passages"), TextGroup(queries, "query", "encoding queries")]
        encoded_passages, encoded_queries = encode_texts(model, groups, options)
        return encoded_passages.vectors, encoded_queries.vectors

    return encode


def _describe_mining(config: PrepConfig, paths: PrepPaths) -> dict[str, Any]:
    """Return how the negatives were mined; the manifest names the checkpoints."""
    encoder = read_encoder(paths.miner) if paths.miner else config.encoder()
    return {
        **config.group(HardNegativeSettings).model_dump(mode="json"),
        "seed": config.conversion_seed,
        "miner": bool(paths.miner),
        "checker": bool(paths.checker),
        "encoder": encoder.model_dump(mode="json"),
    }
