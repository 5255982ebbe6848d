"""Reads chunks, questions or pairs that exist already, one record a line, when only part of the work is wanted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.sdg.read.corpus import Corpus, Document
from components.sdg.read.formats import Unreadable, read_text
from components.sdg.read.sources import RECORDS, SourceFiles
from components.sdg.settings.reading_settings import ReadingSettings

_FORM = '{"source_id": ..., "chunks": ["text", ...], "questions": ["text", ...]}, or lines of qa_pairs.jsonl'


def read_existing(sources: Sequence[SourceFiles], settings: ReadingSettings) -> tuple[Corpus, list[dict[str, Any]]]:
    """The records of all ``*.jsonl`` files of ``sources``, in the recipe's form.

    Chunks are texts or the recipe's records; questions are texts or pairs with ``question``, ``answer`` and
    ``segment_ids``. Raises InputError naming file and line for what is no such record, lacks what ``task`` needs, or
    comes twice.
    """
    skipped: Counter[str] = Counter()
    records: dict[str, dict[str, Any]] = {}
    for source in sources:
        skipped += source.skipped
        before = len(records)
        source.fetch(source.names)
        for where, line in (found for name in source.names for found in _lines(source.root / name, settings)):
            record = _record(line, where, settings) | ({"source": source.source} if source.source else {})
            if records.setdefault(record["source_id"], record) is not record:
                raise InputError(f"{where}: source_id {record['source_id']!r} is there twice: give each its own")
        if len(records) == before:
            raise InputError(f"{source.where} holds no records for task={settings.task}: give .jsonl files of {_FORM}")
    found = list(records.values())
    documents = [Document(one["source_id"], one["text"], one.get("source", "")) for one in found]
    return Corpus(documents, dict(sorted(skipped.items()))), found


def _lines(path: Path, settings: ReadingSettings) -> Iterator[tuple[str, Any]]:
    try:
        text = read_text(path, RECORDS, settings)
    except Unreadable as reason:
        raise InputError(f"{path.name} is {reason}: give JSON Lines in UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{where} is not JSON: every line must be {_FORM}") from None


def _record(line: Any, where: str, settings: ReadingSettings) -> dict[str, Any]:
    if not isinstance(line, dict) or not isinstance(line.get("source_id"), str) or not line["source_id"]:
        raise InputError(f"{where}: expected source_id and chunks, as in {_FORM}")
    chunks = [_chunk(one, number, where) for number, one in enumerate(_list(line, "chunks", where), 1)]
    if not chunks or len({one["chunk_id"] for one in chunks}) < len(chunks):
        raise InputError(f"{where}: expected chunks, each with a chunk_id of its own")
    given = "deduplicated_qa_pairs" if line.get("deduplicated_qa_pairs") else "questions"
    pairs = [_pair(one, where, {one["chunk_id"] for one in chunks}, settings.task) for one in _list(line, given, where)]
    if not pairs and settings.task != "generate_from_chunks":
        raise InputError(f"{where}: task={settings.task} needs questions, as in {_FORM}")
    return {
        "file_name": [line["source_id"]],
        "bundle_id": "",
        "bundle_members": [line["source_id"]],
        "is_multi_doc": False,
        "document_artifacts": {},
        **{name: line[name] for name in ("file_name", "synthetic_method") if name in line},
        "source_id": line["source_id"],
        "text": "\n".join(one["text"] for one in chunks),
        "chunks": chunks,
        "qa_generation": {"pairs": pairs},
        "deduplicated_qa_pairs": [],
        "qa_evaluations": None,
    }


def _chunk(one: Any, number: int, where: str) -> dict[str, Any]:
    found = {"text": one} if isinstance(one, str) else one
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found["text"].strip():
        raise InputError(f"{where}: chunk {number} has no text")
    found = {"chunk_id": number, **found, "word_count": len(found["text"].split())}
    if not isinstance(found["chunk_id"], int):
        raise InputError(f"{where}: chunk_id {found['chunk_id']!r} is no whole number")
    return found


def _pair(one: Any, where: str, known: set[int], task: str) -> dict[str, Any]:
    found = {"question": one} if isinstance(one, str) else one
    if not isinstance(found, dict) or not isinstance(found.get("question"), str) or not found["question"].strip():
        raise InputError(f"{where}: expected a text under 'question'")
    if task != "judge":
        return found
    segments = found.get("segment_ids")
    if not isinstance(found.get("answer"), str) or not isinstance(segments, list) or not segments:
        raise InputError(f"{where}: task=judge needs an answer and segment_ids with each question")
    if any(not isinstance(segment, int) or segment not in known for segment in segments):
        raise InputError(f"{where}: segment_ids {segments} names chunks that are not there")
    return found


def _list(line: dict[str, Any], name: str, where: str) -> list[Any]:
    found = line.get(name) or []
    if not isinstance(found, list):
        raise InputError(f"{where}: {name} must be a list")
    return found
