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
from components.core.history import RunContext
from components.core.progress import track
from components.sdg.changes import compare_with_history, record_run
from components.sdg.component import SdgConfig
from components.sdg.generation import Generated, generate
from components.sdg.llm.budget import Budget, describe, estimate
from components.sdg.offline import OfflineGenerator
from components.sdg.passages.bundles import bundle, to_record
from components.sdg.read.corpus import Corpus, read_corpus
from components.sdg.read.existing import read_existing
from components.sdg.read.sources import open_sources
from components.sdg.report import build_report, unchanged_report
from components.sdg.source_shares import OVER_WEIGHT, asked_for, by_source, weighted

_log = logging.getLogger(__name__)
_FEW_DOCUMENTS = 50
# Left out on purpose: it says nothing about the quality of the corpus.
_NO_DOUBT = ("other extension", "hidden", "over num_files", OVER_WEIGHT)
_OFFLINE_STAMP = {
    "for_quality_claims": False,
    "note": "made by heuristics, for trials: judge models by questions of people, not by these",
}


def run(
    config: SdgConfig, *, corpus: Path | None = None, qa_pairs: Path, generation_report: Path, past_runs: Path
) -> dict[str, Any]:
    """Read ``corpus`` and the settings' ``sources``, write ``qa_pairs``; return counts.

    ``qa_pairs`` gets ``qa_pairs.jsonl`` and ``generation_result.json``; ``generation_report`` is a page about them,
    ``past_runs`` says where this run stands among recurring ones. When that shows nothing new, nothing is generated or
    paid, and ``changed`` is false.

    Both files depend on documents, settings and answers only: a run that was interrupted and went on makes the same
    bytes. Raises InputError when no document is usable or none yields a pair, and what ``generate`` raises.
    """
    read, records = _prepare(config, corpus)
    _log.info("%s", _describe(read, records, config))
    run_, documents = compare_with_history(read, config)
    if run_.corpus.unchanged_since:
        return _end_early(run_, documents, generation_report, past_runs)
    for warning in _doubts(read):
        _log.warning("%s", warning)
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
        **({"sources": by_source(records, config)} if config.sources else {}),
        "documents_without_pairs": [r["source_id"] for r in records if not r["deduplicated_qa_pairs"]],
        **counts,
        **made.totals,
    }
    (qa_pairs / "generation_result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    generation_report.write_text(build_report(config, records, read, made), encoding="utf-8")
    paid = {name: made.metrics.get(name) for name in ("paid_answers", "reused_documents")}
    record_run(replace(run_, corpus=run_.corpus.model_copy(update=paid)), documents, past_runs)
    return {**counts, **made.metrics, "skipped_files": sum(read.skipped.values()), "changed": True}


def _end_early(run_: RunContext, documents: dict[str, str], generation_report: Path, past_runs: Path) -> dict[str, Any]:
    """The same documents and settings gave a model that is served, or that the gate refused."""
    runs = record_run(run_, documents, past_runs)
    generation_report.write_text(unchanged_report(run_, runs), encoding="utf-8")
    return {"documents": len(documents), "changed": False}


def preview(config: SdgConfig, *, corpus: Path | None = None) -> str:
    """What a run would read and cost, as text; nothing is sent.

    Raises InputError when no document is usable, or a cap has no prices.
    """
    read, records = _prepare(config, corpus)
    lines = [_describe(read, records, config), *(f"warning: {doubt}" for doubt in _doubts(read))]
    if config.generator == "llm":
        Budget(config)
        lines.append(describe(estimate(records, config), config))
    return "\n".join(lines)


def sample(config: SdgConfig, *, corpus: Path | None = None) -> str:
    """What a run makes of the first document or bundle, as JSON; nothing is published, its requests are paid for.

    Raises what ``run`` raises.
    """
    _, records = _prepare(config, corpus)
    first = records[:1]
    if config.generator == "llm":
        generate(first, config.model_copy(update={"min_success": 1.0}))
    else:
        _offline(first, config)
    return json.dumps(first[0], ensure_ascii=False, indent=2)


def _prepare(config: SdgConfig, corpus: Path | None) -> tuple[Corpus, list[dict[str, Any]]]:
    with open_sources(config, corpus) as sources:
        if config.task != "generate":
            read, records = read_existing(sources, config)
        else:
            read = read_corpus(sources, config)
            fits = _fits_passage(config) if config.chunk_by_tokens else None
            if config.multi_doc_manifest:
                sources[0].fetch([config.multi_doc_manifest])
            bundles = bundle(read.documents, sources[0].root, config)
            records = [to_record(documents, config, fits) for documents in bundles]
    return weighted(read, records, config)


def _fits_passage(config: SdgConfig) -> Callable[[str], bool]:
    from components.sdg.passages.tokens import fits_passage  # noqa: PLC0415 -- only chunking by tokens needs its packages

    return fits_passage(config)


def _describe(read: Corpus, records: list[dict[str, Any]], config: SdgConfig) -> str:
    passages = sum(len(record["chunks"]) for record in records)
    words = sum(chunk["word_count"] for record in records for chunk in record["chunks"])
    skipped = ", ".join(f"{count} {reason}" for reason, count in read.skipped.items()) or "nothing"
    bundles = f" in {len(records)} bundles" if len(records) < len(read.documents) else ""
    pairs = sum(asked_for(record, config) for record in records)
    size = f"{len(read.documents)} documents{bundles}, {passages} passages, {words:,} words"
    return f"{size}; at most {pairs:,} questions; left out: {skipped}"


def _doubts(read: Corpus) -> list[str]:
    """What speaks against paying for this corpus."""
    doubts = []
    if len(read.documents) < _FEW_DOCUMENTS:
        doubts.append(f"only {len(read.documents)} documents: fewer than {_FEW_DOCUMENTS} teach a model little")
    unusable = sum(count for reason, count in read.skipped.items() if reason not in _NO_DOUBT)
    if unusable > len(read.documents):
        doubts.append(f"more files of these extensions are unusable ({unusable}) than usable: see what was left out")
    return doubts


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
