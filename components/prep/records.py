"""Reads questions and the passages that answer them: what sdg made, or a user's own labelled records."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.errors import InputError

GENERATED = "qa_pairs.jsonl"


@dataclass(frozen=True)
class Example:
    """A question, the texts of the passages that answer it, and the document that it must not leave."""

    query: str
    positives: tuple[str, ...]
    document: str
    negatives: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Records:
    """All examples, every passage with the documents that hold it, and what was dropped, by reason."""

    examples: list[Example] = field(default_factory=list)
    passages: dict[str, list[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)

    def add_passage(self, text: str, document: str) -> None:
        holders = self.passages.setdefault(text, [])
        if document not in holders:
            holders.append(document)


def read_records(directory: Path, *, quality_threshold: float, max_positives: int) -> Records:
    """Everything in ``directory``: ``*.jsonl``, each of sdg's records or of plain labelled ones.

    A generated pair is kept when its overall score is at least ``quality_threshold`` or nobody judged it. Raises
    InputError naming file and line for what cannot be read, and when nothing is left.
    """
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise InputError(f"qa_pairs {directory} holds no .jsonl file: give {GENERATED} or labelled records")
    records = Records()
    for path in files:
        for where, record in _lines(path):
            if "chunks" in record or "deduplicated_qa_pairs" in record:
                _add_generated(records, record, where, quality_threshold, max_positives)
            else:
                _add_labelled(records, record, where, quality_threshold, max_positives)
    if not records.examples:
        raise InputError(_nothing_left(directory, records, quality_threshold))
    return records


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a JSON Lines file with ``file:line``."""
    try:
        # Not splitlines(): a text may hold U+2028, which ends no line of JSON Lines.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8: convert it") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}): every line must be one record") from None
        if not isinstance(record, dict):
            raise InputError(f"{where} is {type(record).__name__}: every line must be one record {{...}}")
        yield where, record


def _add_generated(records: Records, record: dict[str, Any], where: str, threshold: float, max_positives: int) -> None:
    """One document of sdg. Broken pairs are dropped and counted; a document without chunks is an error."""
    try:
        document = str(record["source_id"])
        texts = {int(chunk["chunk_id"]): str(chunk["text"]) for chunk in record["chunks"]}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where}: expected source_id and chunks with chunk_id and text") from None
    for text in texts.values():
        records.add_passage(text, document)
    pairs = record.get("deduplicated_qa_pairs") or []
    evaluations = (record.get("qa_evaluations") or {}).get("evaluations")
    if evaluations is not None and len(evaluations) != len(pairs):
        records.dropped["document with another number of scores than pairs"] += 1
        return
    for pair, evaluation in zip(pairs, evaluations or [None] * len(pairs), strict=True):
        reason = _add_pair(records, pair, evaluation, document, texts, threshold, max_positives)
        if reason:
            records.dropped[reason] += 1


def _add_pair(
    records: Records,
    pair: Any,
    evaluation: Any,
    document: str,
    texts: dict[int, str],
    threshold: float,
    max_positives: int,
) -> str | None:
    """Add the pair, or say why not."""
    query = pair.get("question") if isinstance(pair, dict) else None
    if not isinstance(query, str) or not query.strip():
        return "no question"
    score = None
    if evaluation is not None:
        score = _score(evaluation)
        if score is None:
            return "no usable score"
        records.scores.append(score)
        if score < threshold:
            return "score below quality_threshold"
    segments = pair.get("segment_ids")
    if not isinstance(segments, list) or not segments:
        return "no passage named"
    if any(isinstance(segment, (list, dict)) or segment not in texts for segment in segments):
        return "unknown passage named"
    positives = tuple(dict.fromkeys(texts[segment] for segment in segments))
    if len(positives) > max_positives:
        return "more than max_pos_docs passages"
    kept = ("query_type", "reasoning_type", "hop_count", "question_complexity", "answer", "synthetic_method")
    metadata = {name: pair[name] for name in kept if pair.get(name) is not None}
    if score is not None:
        metadata["quality_score"] = score
    records.examples.append(Example(query.strip(), positives, document, metadata=metadata))
    return None


def _score(evaluation: Any) -> float | None:
    """The overall score, when it is a number from 0 to 10; models also write "9" and "9/10"."""
    try:
        score = evaluation["overall"]["score"]
        if isinstance(score, str):
            score = score.strip().removesuffix("/10")
        value = float(score)
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) and 0 <= value <= 10 and not isinstance(score, bool) else None


def _add_labelled(records: Records, record: dict[str, Any], where: str, threshold: float, max_positives: int) -> None:
    """One record of a user: ``query``, ``positive``, and optionally ``document``, ``negatives``, ``score``."""
    query = record.get("query")
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"{where}: expected a text under 'query', found {query!r}")
    positives = _texts(record.get("positive"), "positive", where)
    negatives = _texts(record["negatives"], "negatives", where) if record.get("negatives") else ()
    if not positives:
        raise InputError(f"{where}: expected a text, or a list of texts, under 'positive'")
    score = record.get("score")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise InputError(f"{where}: expected a number from 0 to 10 under 'score', found {score!r}")
        records.scores.append(float(score))
    document = record.get("document", positives[0])
    if not isinstance(document, str):
        raise InputError(f"{where}: expected a text under 'document', found {document!r}")
    for text in (*positives, *negatives):
        records.add_passage(text, document)
    if score is not None and score < threshold:
        records.dropped["score below quality_threshold"] += 1
    elif len(positives) > max_positives:
        records.dropped["more than max_pos_docs passages"] += 1
    else:
        known = {"query", "positive", "negatives", "document"}
        metadata = {name: value for name, value in record.items() if name not in known}
        records.examples.append(Example(query.strip(), positives, document, negatives, metadata))


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise InputError(f"{where}: expected a text, or a list of texts, under '{name}', found {value!r}")
    return tuple(dict.fromkeys(values))


def _nothing_left(directory: Path, records: Records, threshold: float) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in records.dropped.most_common()) or "no pairs in it"
    message = f"no question of {directory} is left ({reasons})"
    if not records.scores:
        return f"{message}: give records with questions and the passages that answer them"
    histogram = Counter(math.floor(score) for score in records.scores)
    scores = ", ".join(f"{count} of {score} to {score + 1}" for score, count in sorted(histogram.items()))
    best = math.floor(max(records.scores))
    return f"{message}; scores: {scores}: lower quality_threshold ({threshold:g}) to {best} or write better questions"
