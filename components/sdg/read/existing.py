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
from components.sdg.records import Chunk, QaPair, QaRecord
from components.sdg.settings.reading_settings import ReadingSettings, Task

_FORM = '{"source_id": ..., "chunks": ["text", ...], "questions": ["text", ...]}, or lines of qa_pairs.jsonl'


def read_existing(sources: Sequence[SourceFiles], settings: ReadingSettings) -> tuple[Corpus, list[QaRecord]]:
    """Read the records of all ``*.jsonl`` files of ``sources``.

    Chunks are texts or the recipe's records; questions are texts or pairs with ``question``, ``answer`` and
    ``segment_ids``.

    Raises:
        InputError: A line is no such record, lacks what ``task`` needs, or comes twice; the message names it.
    """
    skipped: Counter[str] = Counter()
    records: dict[str, QaRecord] = {}
    for source in sources:
        skipped += source.skipped
        before = len(records)
        source.fetch(source.names)
        for name in source.names:
            for where, line in _read_lines(source.root / name, settings):
                record = _parse_record(line, where, source.source, settings.task)
                if records.setdefault(record.source_id, record) is not record:
                    raise InputError(f"{where}: source_id {record.source_id!r} is there twice: give each its own")
        if len(records) == before:
            raise InputError(f"{source.where} holds no records for task={settings.task}: give .jsonl files of {_FORM}")
    documents = [Document(record.source_id, record.text, record.source) for record in records.values()]
    return Corpus(documents, dict(sorted(skipped.items()))), list(records.values())


def _read_lines(path: Path, settings: ReadingSettings) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each line, after the name of the line for error messages."""
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


def _parse_record(line: Any, where: str, source: str, task: Task) -> QaRecord:
    if not isinstance(line, dict) or not isinstance(line.get("source_id"), str) or not line["source_id"]:
        raise InputError(f"{where}: expected source_id and chunks, as in {_FORM}")
    chunks = [_parse_chunk(value, number, where) for number, value in enumerate(_get_list(line, "chunks", where), 1)]
    chunk_ids = {chunk.chunk_id for chunk in chunks}
    if not chunks or len(chunk_ids) < len(chunks):
        raise InputError(f"{where}: expected chunks, each with a chunk_id of its own")
    name = "deduplicated_qa_pairs" if line.get("deduplicated_qa_pairs") else "questions"
    pairs = [_parse_pair(value, where, chunk_ids, task) for value in _get_list(line, name, where)]
    if not pairs and task != "generate_from_chunks":
        raise InputError(f"{where}: task={task} needs questions, as in {_FORM}")
    file_name = line.get("file_name", [line["source_id"]])
    if not isinstance(file_name, list) or not all(isinstance(path, str) for path in file_name):
        raise InputError(f"{where}: file_name must be a list of paths")
    method = line.get("synthetic_method")
    if not isinstance(method, str | None):
        raise InputError(f"{where}: synthetic_method must be a text")
    return QaRecord(
        source_id=line["source_id"],
        file_name=file_name,
        text="\n".join(chunk.text for chunk in chunks),
        chunks=chunks,
        source=source,
        bundle_members=[line["source_id"]],
        candidates=pairs,
        synthetic_method=method,
    )


def _parse_chunk(value: Any, number: int, where: str) -> Chunk:
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str) or not fields["text"].strip():
        raise InputError(f"{where}: chunk {number} has no text")
    fields = {"chunk_id": number, **fields, "word_count": len(fields["text"].split())}
    if not isinstance(fields["chunk_id"], int):
        raise InputError(f"{where}: chunk_id {fields['chunk_id']!r} is no whole number")
    return Chunk.from_json(fields)


def _parse_pair(value: Any, where: str, chunk_ids: set[int], task: Task) -> QaPair:
    fields = {"question": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("question"), str) or not fields["question"].strip():
        raise InputError(f"{where}: expected a text under 'question'")
    if task != "judge":
        return QaPair.from_json(fields)
    segments = fields.get("segment_ids")
    if not isinstance(fields.get("answer"), str) or not isinstance(segments, list) or not segments:
        raise InputError(f"{where}: task=judge needs an answer and segment_ids with each question")
    if any(not isinstance(segment, int) or segment not in chunk_ids for segment in segments):
        raise InputError(f"{where}: segment_ids {segments} names chunks that are not there")
    return QaPair.from_json(fields)


def _get_list(line: dict[str, Any], name: str, where: str) -> list[Any]:
    values = line.get(name) or []
    if not isinstance(values, list):
        raise InputError(f"{where}: {name} must be a list")
    return values
