"""Labelled records of a user: questions with their answers as text or by id, and passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.prep.component import RecordSettings
from components.prep.read.files import LocatedRecord, read_file
from components.prep.read.records import QueryExample, Records, parse_texts

_KNOWN = {"query", "positive", "positive_id", "negatives", "negative_ids", "document", "metadata"}


def add(records: Records, located: Iterable[LocatedRecord], settings: RecordSettings) -> None:
    """Add questions and passages. Ids are those of the passages among ``located``, in any order.

    A question is ``query`` with ``positive`` or ``positive_id``, a passage is ``text`` with ``id``. Raises InputError,
    with the place, for a record that is neither and for an id that no passage has.
    """
    questions: list[LocatedRecord] = []
    passages: dict[str, tuple[str, str]] = {}
    for where, record in located:
        if "query" in record or "text" not in record:
            questions.append((where, record))
        else:
            _add_passage(records, passages, record, where, settings)
    for where, record in questions:
        _add_question(records, passages, record, where, settings)


def _add_passage(
    records: Records, passages: dict[str, tuple[str, str]], record: dict[str, Any], where: str, settings: RecordSettings
) -> None:
    name, text = record.get("id", record.get("_id")), record["text"]
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a text under 'text', found {text!r}")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected an id of its own for the passage, found {name!r}")
    document = _parse_document_name(record, name, where)
    if passages.setdefault(name, (text, document)) != (text, document):
        raise InputError(f"{where}: the id {name!r} is another passage's too: give every passage an id of its own")
    if text.strip():
        records.add_passage(text, document)
        records.set_group_and_time(document, record, where, settings)


def _add_question(
    records: Records, passages: dict[str, tuple[str, str]], record: dict[str, Any], where: str, settings: RecordSettings
) -> None:
    query = record.get("query")
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"{where}: expected a text under 'query', found {query!r}")
    named = _resolve_ids(record, "positive_id", passages, where)
    written = parse_texts(record["positive"], "positive", where) if record.get("positive") else ()
    positives = tuple(dict.fromkeys([*written, *(text for text, _ in named)]))
    if not positives:
        raise InputError(f"{where}: expected a text, or a list of texts, under 'positive', or ids under 'positive_id'")
    document = _parse_document_name(record, named[0][1] if named else positives[0], where)
    refused = parse_texts(record["negatives"], "negatives", where) if record.get("negatives") else ()
    negatives = (*refused, *(text for text, _ in _resolve_ids(record, "negative_ids", passages, where)))
    for text in (*written, *refused):
        records.add_passage(text, document)
    records.set_group_and_time(document, record, where, settings)
    score = record.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 10):
        raise InputError(f"{where}: expected a number from 0 to 10 under 'score', found {score!r}")
    metadata = {name: value for name, value in record.items() if name not in _KNOWN}
    if isinstance(fields := record.get("metadata"), dict):
        metadata |= fields
    example = QueryExample(query.strip(), positives, document, tuple(dict.fromkeys(negatives)), metadata)
    records.add_example(example, None if score is None else float(score), settings)


def _parse_document_name(record: dict[str, Any], otherwise: str, where: str) -> str:
    document = record.get("document", otherwise)
    if not isinstance(document, str):
        raise InputError(f"{where}: expected a text under 'document', found {document!r}")
    return document


def _resolve_ids(
    record: dict[str, Any], field: str, passages: dict[str, tuple[str, str]], where: str
) -> list[tuple[str, str]]:
    """Return text and document of each passage that ``field`` names, without empty ones, which answer nothing."""
    names = parse_texts(record[field], field, where) if record.get(field) else ()
    for name in names:
        if name not in passages:
            raise InputError(f"{where}: {field} names {name!r}, and no passage has this id")
    return [passages[name] for name in names if passages[name][0].strip()]


def is_automodel(record: dict[str, Any]) -> bool:
    """Return whether this is a whole training file in NeMo Automodel's format."""
    return isinstance(record.get("corpus"), dict) and isinstance(record.get("data"), list)


def read_automodel(path: Path, content: dict[str, Any]) -> Iterator[LocatedRecord]:
    """Yield questions and passages of an Automodel training file, whose corpus lies in the same directory."""
    folder = path.parent / str(content["corpus"].get("path"))
    files = sorted(folder.glob("*.parquet")) if folder.resolve().is_relative_to(path.parent.resolve()) else []
    if not files:
        raise InputError(f"{path.name}: corpus.path must be a folder beside the file with .parquet files (id, text)")
    for file in files:
        yield from ((where, record) for where, record in read_file(file))
    for number, row in enumerate(content["data"]):
        where = f"{path.name}: data[{number}]"
        try:
            positives, negatives = ([str(document["id"]) for document in row[name]] for name in ("pos_doc", "neg_doc"))
            record = {"query": row["question"], "positive_id": positives, "negative_ids": negatives}
        except (KeyError, TypeError):
            raise InputError(f"{where}: expected question, pos_doc and neg_doc with ids") from None
        yield where, {**record, "source": path.stem}
