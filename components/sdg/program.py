"""Generates question-answer pairs from a corpus."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.history import ThisRun
from components.core.progress import track
from components.sdg.budget import Budget, describe, estimate
from components.sdg.bundles import bundle, to_record
from components.sdg.changes import look, note
from components.sdg.component import SdgConfig
from components.sdg.corpus import Corpus, read_corpus
from components.sdg.existing import read_existing
from components.sdg.generation import Generated, generate
from components.sdg.offline import OfflineGenerator
from components.sdg.report import build_report, unchanged_report

_log = logging.getLogger(__name__)
_OFFLINE_STAMP = {
    "for_quality_claims": False,
    "note": "made by heuristics, for trials: judge models by questions of people, not by these",
}


def run(config: SdgConfig, *, corpus: Path, qa_pairs: Path, generation_report: Path, past_runs: Path) -> dict[str, Any]:
    """Read ``corpus``, write ``qa_pairs.jsonl`` and ``generation_result.json`` into ``qa_pairs``; return counts.

    ``generation_report`` becomes a page about them, ``past_runs`` says where this run stands among recurring ones. When
    that shows nothing new, nothing is generated or paid, and ``changed`` is false.

    Both files depend on documents, settings and answers only: a run that was interrupted and went on makes the same
    bytes. Raises InputError when no document is usable or none yields a pair, and what ``generate`` raises.
    """
    read, records = _prepare(config, corpus)
    _log.info("%s", _describe(read, records))
    run_, documents = look(read, config)
    if run_.started.unchanged_since:
        return _end_early(run_, documents, generation_report, past_runs)
    made = generate(records, config) if config.generator == "llm" else _offline(records, config)
    pairs = sum(len(record["deduplicated_qa_pairs"]) for record in records)
    passages = sum(len(record["chunks"]) for record in records)
    if not pairs:
        raise InputError(f"none of {passages} passages is long enough for a question: give longer documents")
    qa_pairs.mkdir()
    with (qa_pairs / "qa_pairs.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    counts = {"documents": len(read.documents), "passages": passages, "pairs": pairs}
    result = {
        "dataset_name": "qa_pairs",
        "output_path": "qa_pairs.jsonl",
        "schema_version": 1,
        "generator": config.generator,
        **(_OFFLINE_STAMP if config.generator == "offline" else {}),
        "skipped_files": read.skipped,
        "documents_without_pairs": [r["source_id"] for r in records if not r["deduplicated_qa_pairs"]],
        **counts,
        **made.totals,
    }
    (qa_pairs / "generation_result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    generation_report.write_text(build_report(config, records, read, made), encoding="utf-8")
    paid = {name: made.metrics.get(name) for name in ("paid_answers", "reused_documents")}
    note(replace(run_, started=run_.started.model_copy(update=paid)), documents, past_runs)
    return {**counts, **made.metrics, "skipped_files": sum(read.skipped.values()), "changed": True}


def _end_early(run_: ThisRun, documents: dict[str, str], generation_report: Path, past_runs: Path) -> dict[str, Any]:
    """The same documents and settings gave a model that is served, or that the gate refused."""
    runs = note(run_, documents, past_runs)
    generation_report.write_text(unchanged_report(run_, runs), encoding="utf-8")
    return {"documents": len(documents), "changed": False}


def preview(config: SdgConfig, *, corpus: Path) -> str:
    """What a run would read and cost, as text; nothing is sent.

    Raises InputError when no document is usable, or a cap has no prices.
    """
    read, records = _prepare(config, corpus)
    lines = [_describe(read, records)]
    if config.generator == "llm":
        Budget(config)
        lines.append(describe(estimate(records, config), config))
    return "\n".join(lines)


def _prepare(config: SdgConfig, corpus: Path) -> tuple[Corpus, list[dict[str, Any]]]:
    if config.task != "generate":
        return read_existing(corpus, config)
    read = read_corpus(corpus, config)
    fits = _fits_passage(config) if config.chunk_by_tokens else None
    return read, [to_record(documents, config, fits) for documents in bundle(read.documents, corpus, config)]


def _fits_passage(config: SdgConfig) -> Callable[[str], bool]:
    from components.sdg.tokens import fits_passage  # noqa: PLC0415 -- only chunking by tokens needs its packages

    return fits_passage(config)


def _describe(read: Corpus, records: list[dict[str, Any]]) -> str:
    passages = sum(len(record["chunks"]) for record in records)
    skipped = ", ".join(f"{count} {reason}" for reason, count in read.skipped.items()) or "nothing"
    bundles = f" in {len(records)} bundles" if len(records) < len(read.documents) else ""
    return f"{len(read.documents)} documents{bundles}, {passages} passages; left out: {skipped}"


def _offline(records: list[dict[str, Any]], config: SdgConfig) -> Generated:
    """Give every record pairs made without an LLM."""
    generator = OfflineGenerator(
        [chunk["text"] for record in records for chunk in record["chunks"]], method=config.offline_method
    )
    for record in track(records, "generating questions", unit="documents"):
        # Seeded by document, so that a new document changes no other one's random choices; tf-idf weights it does.
        random_ = random.Random(f"{config.seed}:{record['source_id']}")
        pairs = generator.pairs(record["chunks"], per_passage=config.num_pairs, random_=random_)
        record["qa_generation"] = {"pairs": pairs}
        record["deduplicated_qa_pairs"] = pairs
        record["synthetic_method"] = config.offline_method
        record["for_quality_claims"] = False
    return Generated({}, {})
