"""Generates question-answer pairs from a corpus."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.progress import track
from components.sdg.budget import Budget, describe, estimate
from components.sdg.chunking import chunk
from components.sdg.component import SdgConfig
from components.sdg.corpus import Corpus, Document, read_corpus
from components.sdg.generation import Generated, generate
from components.sdg.offline import OfflineGenerator

_log = logging.getLogger(__name__)
_OFFLINE_STAMP = {
    "for_quality_claims": False,
    "note": "made by heuristics, for trials: judge models by questions of people, not by these",
}


def run(config: SdgConfig, *, corpus: Path, qa_pairs: Path) -> dict[str, Any]:
    """Read ``corpus``, write ``qa_pairs.jsonl`` and ``generation_result.json`` into ``qa_pairs``; return counts.

    Both files depend on documents, settings and answers only: a run that was interrupted and went on makes the same
    bytes. Raises InputError when no document is usable or none yields a pair, and what ``generate`` raises.
    """
    read, records = _prepare(config, corpus)
    _log.info("%s", _describe(read, records))
    made = generate(records, config) if config.generator == "llm" else _offline(records, config)
    pairs = sum(len(record["deduplicated_qa_pairs"]) for record in records)
    passages = sum(len(record["chunks"]) for record in records)
    if not pairs:
        raise InputError(f"none of {passages} passages is long enough for a question: give longer documents")
    qa_pairs.mkdir()
    with (qa_pairs / "qa_pairs.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    counts = {"documents": len(records), "passages": passages, "pairs": pairs}
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
    return {**counts, **made.metrics, "skipped_files": sum(read.skipped.values())}


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
    read = read_corpus(corpus, config)
    records = [_record(document, config) for document in read.documents]
    return read, records


def _describe(read: Corpus, records: list[dict[str, Any]]) -> str:
    passages = sum(len(record["chunks"]) for record in records)
    skipped = ", ".join(f"{count} {reason}" for reason, count in read.skipped.items()) or "nothing"
    return f"{len(records)} documents, {passages} passages; left out: {skipped}"


def _record(document: Document, config: SdgConfig) -> dict[str, Any]:
    chunks = chunk(document.text, sentences=config.sentences_per_chunk, max_words=config.chunk_max_words)
    return {
        "file_name": [document.source_id],
        "source_id": document.source_id,
        "text": document.text,
        "chunks": chunks,
        "bundle_id": "",
        "bundle_members": [document.source_id],
        "is_multi_doc": False,
        "document_artifacts": {},
        "qa_generation": {"pairs": []},
        "deduplicated_qa_pairs": [],
        "qa_evaluations": None,
    }


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
