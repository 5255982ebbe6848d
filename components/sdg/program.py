"""Generates question-answer pairs from a corpus."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.history import RunContext
from components.core.progress import track
from components.sdg.changes import compare_with_history, record_run
from components.sdg.component import SdgConfig
from components.sdg.generation import GenerationResult, generate
from components.sdg.llm.budget import Budget, describe_estimate, estimate_cost
from components.sdg.offline import OfflineGenerator
from components.sdg.passages.bundles import build_record, group_documents
from components.sdg.passages.chunking import count_words
from components.sdg.read.corpus import Corpus, read_corpus
from components.sdg.read.existing import read_existing
from components.sdg.read.sources import open_sources
from components.sdg.records import Json, QaRecord
from components.sdg.report import build_report, build_unchanged_report
from components.sdg.source_shares import OVER_WEIGHT, count_by_source, count_expected_pairs, select_by_weight

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
    """Read ``corpus`` and the settings' ``sources``, generate pairs, and write the artifacts.

    The artifacts depend on documents, settings and answers only: a run that was interrupted and went on makes the same
    bytes.

    Args:
        config: Settings of sdg.
        corpus: Directory of documents.
        qa_pairs: Gets ``qa_pairs.jsonl`` and ``generation_result.json``.
        generation_report: Gets a page about them.
        past_runs: Gets where this run stands among recurring ones. When that shows nothing new, nothing is generated
            or paid, and ``changed`` is false.

    Returns:
        Metrics, and the result ``changed``.

    Raises:
        InputError: No document is usable, or none yields a pair.
        StageError: What ``generate`` raises.
    """
    read, records = _read(config, corpus)
    _log.info("%s", _describe(read, records, config))
    run_, documents = compare_with_history(read, config)
    if run_.corpus.unchanged_since:
        return _end_early(run_, documents, generation_report, past_runs)
    for warning in _list_doubts(read):
        _log.warning("%s", warning)
    result = _generate(records, config)
    passages = sum(len(record.chunks) for record in result.records)
    pairs = sum(len(record.pairs) for record in result.records)
    if not pairs:
        raise InputError(f"none of {passages} passages is long enough for a question: give longer documents")
    counts = {"documents": len(read.documents), "passages": passages, "pairs": pairs}
    _write_pairs(qa_pairs, result, counts, read, config)
    generation_report.write_text(build_report(config, read, result), encoding="utf-8")
    paid = {name: result.metrics.get(name) for name in ("paid_answers", "reused_documents")}
    record_run(replace(run_, corpus=run_.corpus.model_copy(update=paid)), documents, past_runs)
    return {**counts, **result.metrics, "skipped_files": sum(read.skipped.values()), "changed": True}


def _end_early(run_: RunContext, documents: dict[str, str], generation_report: Path, past_runs: Path) -> dict[str, Any]:
    """Write that the same documents and settings gave a model that is served, or that the gate refused."""
    runs = record_run(run_, documents, past_runs)
    generation_report.write_text(build_unchanged_report(run_, runs), encoding="utf-8")
    return {"documents": len(documents), "changed": False}


def preview(config: SdgConfig, *, corpus: Path | None = None) -> str:
    """Return what a run would read and cost, as text; nothing is sent.

    Raises:
        InputError: No document is usable, or a cap has no prices.
    """
    read, records = _read(config, corpus)
    lines = [_describe(read, records, config), *(f"warning: {doubt}" for doubt in _list_doubts(read))]
    if config.generator == "llm":
        Budget(config, config.models.values())
        lines.append(describe_estimate(estimate_cost(records, config), config.prices))
    return "\n".join(lines)


def sample(config: SdgConfig, *, corpus: Path | None = None) -> str:
    """Return what a run makes of the first document or bundle, as JSON.

    Nothing is published; the requests are paid for. Raises what ``run`` raises.
    """
    _, records = _read(config, corpus)
    result = _generate(records[:1], config.model_copy(update={"min_success": 1.0}))
    return json.dumps(result.records[0].to_json(), ensure_ascii=False, indent=2)


def _read(config: SdgConfig, corpus: Path | None) -> tuple[Corpus, list[QaRecord]]:
    """Return the documents to ask about, and their records without questions."""
    with open_sources(config, corpus) as sources:
        if config.task != "generate":
            read, records = read_existing(sources, config)
        else:
            read = read_corpus(sources, config)
            fits = _make_passage_check(config) if config.chunk_by_tokens else None
            if config.multi_doc_manifest:
                sources[0].fetch([config.multi_doc_manifest])
            bundles = group_documents(read.documents, sources[0].root, config)
            records = [build_record(documents, config, fits) for documents in bundles]
    return select_by_weight(read, records, config)


def _make_passage_check(config: SdgConfig) -> Callable[[str], bool]:
    from components.sdg.passages.tokens import make_passage_check  # noqa: PLC0415 -- needs packages that others do not

    return make_passage_check(config)


def _describe(read: Corpus, records: Sequence[QaRecord], config: SdgConfig) -> str:
    passages = sum(len(record.chunks) for record in records)
    words = sum(count_words(record.chunks) for record in records)
    skipped = ", ".join(f"{count} {reason}" for reason, count in read.skipped.items()) or "nothing"
    bundles = f" in {len(records)} bundles" if len(records) < len(read.documents) else ""
    pairs = sum(count_expected_pairs(record, config) for record in records)
    size = f"{len(read.documents)} documents{bundles}, {passages} passages, {words:,} words"
    return f"{size}; at most {pairs:,} questions; left out: {skipped}"


def _list_doubts(read: Corpus) -> list[str]:
    """Return what speaks against paying for this corpus."""
    doubts = []
    if len(read.documents) < _FEW_DOCUMENTS:
        doubts.append(f"only {len(read.documents)} documents: fewer than {_FEW_DOCUMENTS} teach a model little")
    unusable = sum(count for reason, count in read.skipped.items() if reason not in _NO_DOUBT)
    if unusable > len(read.documents):
        doubts.append(f"more files of these extensions are unusable ({unusable}) than usable: see what was left out")
    return doubts


def _generate(records: Sequence[QaRecord], config: SdgConfig) -> GenerationResult:
    return generate(records, config) if config.generator == "llm" else _generate_offline(records, config)


def _generate_offline(records: Sequence[QaRecord], config: SdgConfig) -> GenerationResult:
    """Give every record pairs made without an LLM."""
    passages = [chunk.text for record in records for chunk in record.chunks]
    generator = OfflineGenerator(passages, method=config.offline_method)
    generated = []
    for record in track(records, "generating questions", unit="documents"):
        # Seeded by document, so that a new document changes no other one's random choices; tf-idf weights it does.
        random_ = random.Random(f"{config.seed}:{record.source_id}")
        pairs = generator.make_pairs(record.chunks, per_passage=config.num_pairs, random_=random_)
        generated.append(
            replace(
                record,
                candidates=pairs,
                pairs=pairs,
                synthetic_method=config.offline_method,
                for_quality_claims=False,
            )
        )
    return GenerationResult(generated)


def _write_pairs(
    directory: Path, result: GenerationResult, counts: dict[str, int], read: Corpus, config: SdgConfig
) -> None:
    """Write the artifact ``qa_pairs``."""
    directory.mkdir()
    with (directory / "qa_pairs.jsonl").open("w", encoding="utf-8") as out:
        for record in result.records:
            out.write(json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True) + "\n")
    summary = {
        "dataset_name": "qa_pairs",
        "output_path": "qa_pairs.jsonl",
        "schema_version": 1,
        "generator": config.generator,
        **(_OFFLINE_STAMP if config.generator == "offline" else {}),
        "skipped_files": read.skipped,
        **({"sources": _count_sources(result, config)} if config.sources else {}),
        "documents_without_pairs": [record.source_id for record in result.records if not record.pairs],
        **counts,
        **result.totals,
    }
    (directory / "generation_result.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _count_sources(result: GenerationResult, config: SdgConfig) -> dict[str, Json]:
    return {name: counts.to_json() for name, counts in count_by_source(result.records, config.sources).items()}
