"""Retrieval test sets in BEIR's folder layout, read strictly.

Layout (Thakur et al. 2021, https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset): ``corpus.jsonl``,
``queries.jsonl`` and ``qrels/test.tsv``. BEIR's own loader takes missing texts, repeated ids and judgements of unknown
passages for granted; each of them changes the figures without a word.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from components.core.errors import InputError

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
QRELS_FILE = "qrels/test.tsv"
QRELS_HEADER = ("query-id", "corpus-id", "score")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BeirData:
    """A test set. Order is that of the files.

    ``corpus``: passage id to title and text, joined by a blank as BEIR does. ``documents``: passage id to the document
    it is part of (``metadata.document``; a passage without one is a document of its own). ``queries``, ``qrels`` and
    ``query_metadata`` hold the queries that have a relevant answer. ``level`` says what ``qrels`` name.
    """

    corpus: dict[str, str]
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    query_metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    level: Literal["passage", "document"] = "passage"


def read_beir(directory: Path, *, searched: BeirData | None = None, split: str = "test") -> BeirData:
    """Read the test set in ``directory``, or another ``split`` of it: qrels/SPLIT.tsv.

    A folder without ``corpus.jsonl`` asks questions about the passages of ``searched``, when that is given.
    Raises InputError naming file and line: missing files, lines that are no records, repeated ids, judgements of
    unknown queries or of what is neither all passages nor all documents, no query with a relevant answer.
    """
    if searched is not None and not (directory / CORPUS_FILE).is_file():
        corpus, documents = searched.corpus, searched.documents
    else:
        corpus, documents = _read_corpus(directory / CORPUS_FILE)
    queries, metadata = read_queries(directory)
    qrels_file = directory / QRELS_FILE.replace("test", split)
    qrels, lines = _read_qrels(qrels_file, queries)
    level = _find_level(qrels_file, lines, corpus, documents)
    answered = [query for query in queries if any(score > 0 for score in qrels.get(query, {}).values())]
    if not answered:
        raise InputError(f"{qrels_file}: no query has a relevant answer (score above 0): nothing to measure")
    if len(answered) < len(queries):
        _log.info("%s: %d of %d queries have a relevant answer", directory, len(answered), len(queries))
    return BeirData(
        corpus,
        documents,
        {query: queries[query] for query in answered},
        {query: qrels[query] for query in answered},
        {query: metadata[query] for query in answered},
        level,
    )


def _read_corpus(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    corpus: dict[str, str] = {}
    documents: dict[str, str] = {}
    for where, record in _read_records(path, corpus):
        title = _parse_text(record, "title", where) if record.get("title") is not None else ""
        passage = record["_id"]
        corpus[passage] = f"{title} {_parse_text(record, 'text', where)}".strip()
        metadata = _parse_metadata(record, where)
        documents[passage] = _parse_text(metadata, "document", where) if "document" in metadata else passage
    if not corpus:
        raise InputError(f"{path} has no passage: one JSON record with _id and text per line is needed")
    return corpus, documents


def read_queries(directory: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read text and metadata of every query in ``directory``, by id. Raises InputError as ``read_beir`` does."""
    path = directory / QUERIES_FILE
    queries: dict[str, str] = {}
    metadata: dict[str, dict[str, Any]] = {}
    for where, record in _read_records(path, queries):
        text = _parse_text(record, "text", where)
        if not text.strip():
            raise InputError(f"{where}: the query is empty: write one or remove the line")
        queries[record["_id"]] = text
        metadata[record["_id"]] = _parse_metadata(record, where)
    return queries, metadata


def _read_records(path: Path, known: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``file:line`` and record of each line; an id of ``known`` may not come again."""
    for where, line in _read_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}): one record per line is needed") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: found {type(record).__name__}, expected a record with _id and text")
        identifier = _parse_text(record, "_id", where)
        if not identifier or identifier in known:
            raise InputError(f"{where}: _id {identifier!r} is {'repeated' if identifier else 'empty'}: ids are unique")
        yield where, record


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise InputError(f"there is no file {path}: a BEIR folder has {CORPUS_FILE}, {QUERIES_FILE} and {QRELS_FILE}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not UTF-8 ({error.reason}): save the file as UTF-8") from None
            if text.strip():
                yield where, text


def _parse_text(record: dict[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} must be text, found {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where}: {name} has half a character (a lone surrogate): repair the text")
    return value


def _parse_metadata(record: dict[str, Any], where: str) -> dict[str, Any]:
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: metadata must be a record, found {metadata!r}")
    return metadata


def _read_qrels(path: Path, queries: dict[str, str]) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Return judgements by query, and ``file:line`` of the first one of each judged id."""
    qrels: dict[str, dict[str, int]] = {}
    first_line: dict[str, str] = {}
    lines = _read_lines(path)
    where, header = next(lines, (f"{path}:1", ""))
    if tuple(header.split("\t")) != QRELS_HEADER:
        raise InputError(f"{where}: expected the header {QRELS_HEADER} separated by tabs, found {header!r}")
    for where, line in lines:
        columns = line.split("\t")
        if len(columns) != len(QRELS_HEADER):
            raise InputError(f"{where}: expected three columns separated by tabs, found {line!r}")
        query, judged, score = columns
        if query not in queries:
            raise InputError(f"{where}: there is no query {query!r} in {QUERIES_FILE}")
        try:
            value = int(score)
        except ValueError:
            raise InputError(f"{where}: the score must be a whole number, found {score!r}") from None
        if qrels.setdefault(query, {}).setdefault(judged, value) != value:
            raise InputError(f"{where}: {query} and {judged} are judged twice and differently: keep one line")
        first_line.setdefault(judged, where)
    return qrels, first_line


def _find_level(
    path: Path, judged: dict[str, str], corpus: dict[str, str], documents: dict[str, str]
) -> Literal["passage", "document"]:
    """Return whether the ids in ``judged`` are passages or documents. Raises InputError for a mixture."""
    if judged.keys() <= corpus.keys():
        return "passage"
    known = set(documents.values())
    for name, where in judged.items():
        if name not in known and name not in corpus:
            raise InputError(f"{where}: the corpus has no passage and no document {name!r}")
    if judged.keys() <= known:
        return "document"
    raise InputError(f"{path}: judges passages and documents: name only passages or only documents")
