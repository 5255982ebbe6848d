"""Records of sdg and of the recipe's own generator: one per document or bundle of documents."""

from __future__ import annotations

import json
import math
from typing import Any

from components.core.errors import InputError
from components.prep.component import RecordSettings
from components.prep.read.records import QueryExample, Records

_METADATA_FIELDS = (
    "query_type", "reasoning_type", "hop_count", "question_complexity", "answer", "hop_contexts", "segment_ids",
    "synthetic_method", "question_style",
)  # fmt: skip


def is_generated(record: dict[str, Any]) -> bool:
    """Return whether this is a record of a generator; labelled records have no chunks."""
    return "chunks" in record or "deduplicated_qa_pairs" in record


def add(records: Records, record: dict[str, Any], where: str, settings: RecordSettings) -> None:
    """Add one record. Broken pairs are dropped and counted; a record without chunks is an error."""
    document = _parse_document_name(record, where)
    chunks = _parse_field(record, "chunks", where)
    try:
        texts = {int(chunk["chunk_id"]): str(chunk["text"]) for chunk in chunks}
        holders = {int(chunk["chunk_id"]): str(chunk.get("doc_id") or document) for chunk in chunks}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{where}: expected source_id and chunks with chunk_id and text") from None
    for number, text in texts.items():
        if text.strip():
            records.add_passage(text, holders[number])
    members = record.get("bundle_members")
    bundle = {document, *holders.values(), *(map(str, members) if isinstance(members, list) else ())}
    if len(bundle) > 1:
        records.groups.setdefault(f"bundle {document}", set()).update(bundle)
    for name in sorted(bundle):
        records.set_group_and_time(name, record, where, settings)
    pairs = _parse_field(record, "deduplicated_qa_pairs", where) or []
    judged = _parse_field(record, "qa_evaluations", where) or {}
    evaluations = judged.get("evaluations") if isinstance(judged, dict) else judged
    if not isinstance(pairs, list) or not isinstance(evaluations, (list, type(None))):
        raise InputError(f"{where}: expected lists under deduplicated_qa_pairs and qa_evaluations.evaluations")
    if evaluations is not None and len(evaluations) != len(pairs):
        records.dropped["document with another number of scores than pairs"] += 1
        return
    source = record.get("source")
    source = source if isinstance(source, str) and source else "generated"
    for pair, evaluation in zip(pairs, evaluations or [None] * len(pairs), strict=True):
        if reason := _add_pair(records, pair, evaluation, document, texts, settings, source):
            records.dropped[reason] += 1


def _parse_document_name(record: dict[str, Any], where: str) -> str:
    """Return ``source_id``, or what older versions of the recipe have instead: a file name or a list of them."""
    name = record.get("source_id") or record.get("file_name")
    if isinstance(name, list) and name:
        name = "||".join(map(str, name))
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected source_id and chunks with chunk_id and text")
    return name


def _parse_field(record: dict[str, Any], name: str, where: str) -> Any:
    """Return a field, which may be JSON text in tables."""
    value = record.get(name)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {name} is text that is not JSON ({error})") from None


def _add_pair(
    records: Records,
    pair: Any,
    evaluation: Any,
    document: str,
    texts: dict[int, str],
    settings: RecordSettings,
    source: str,
) -> str | None:
    """Add the pair; return what is wrong with it when it cannot be used."""
    query = pair.get("question") if isinstance(pair, dict) else None
    if not isinstance(query, str) or not query.strip():
        return "no question"
    score = None
    if evaluation is not None and (score := _parse_score(evaluation)) is None:
        return "no usable score"
    segments = pair.get("segment_ids")
    if not isinstance(segments, list) or not segments:
        return "no passage named"
    if any(isinstance(segment, (list, dict)) or segment not in texts for segment in segments):
        return "unknown passage named"
    positives = tuple(dict.fromkeys(texts[segment] for segment in segments))
    if not all(text.strip() for text in positives):
        return "empty passage named"
    metadata = {name: pair[name] for name in _METADATA_FIELDS if pair.get(name) is not None}
    metadata["source"] = source
    if score is not None:
        metadata["quality_score"] = score
    example = QueryExample(query.strip(), positives, document, metadata=metadata, generated=True)
    records.add_example(example, score, settings)
    return None


def _parse_score(evaluation: Any) -> float | None:
    """Return the overall score if it is a number from 0 to 10; models also write "9" and "9/10"."""
    try:
        score = evaluation["overall"]["score"]
        if isinstance(score, str):
            score = score.strip().removesuffix("/10")
        value = float(score)
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) and 0 <= value <= 10 and not isinstance(score, bool) else None
