"""Questions and the passages that answer them, in whatever format they were read."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from components.core.errors import InputError
from components.prep.component import DocumentFieldSettings, RecordSettings

BELOW_THRESHOLD = "score below quality_threshold"
TOO_MANY_ANSWERS = "more than max_pos_docs passages"


@dataclass(frozen=True)
class QueryExample:
    """A question, the texts of the passages that answer it, and the document that it belongs to.

    ``negatives`` are passages that a user says do not answer it. ``generated``: a model or a heuristic wrote the
    question, not a person.
    """

    query: str
    positives: tuple[str, ...]
    document: str
    negatives: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    generated: bool = False


@dataclass
class Records:
    """All examples, every passage with the documents that hold it, and the number of dropped questions by reason.

    ``groups``: documents that stay together, by the name of what they have in common. ``times``: when a document
    was written, in seconds or in the unit of the user's numbers. ``scores``: every score that was read.
    """

    examples: list[QueryExample] = field(default_factory=list)
    passages: dict[str, list[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    groups: dict[str, set[str]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def add_passage(self, text: str, document: str) -> None:
        """Note that ``document`` holds the passage ``text``."""
        holders = self.passages.setdefault(text, [])
        if document not in holders:
            holders.append(document)

    def add_example(self, example: QueryExample, score: float | None, settings: RecordSettings) -> None:
        """Keep the example, or count it under the reason why it is dropped."""
        if score is not None:
            self.scores.append(score)
        if score is not None and score < settings.quality_threshold:
            self.dropped[BELOW_THRESHOLD] += 1
        elif len(example.positives) > settings.max_pos_docs:
            self.dropped[TOO_MANY_ANSWERS] += 1
        else:
            self.examples.append(example)

    def set_group_and_time(
        self, document: str, record: dict[str, Any], where: str, settings: DocumentFieldSettings
    ) -> None:
        """Note group and time of a document as its record gives them."""
        group_field, time_field = settings.split_group_field, settings.split_time_field
        if group_field and (value := _get_field(record, group_field)) is not None:
            self.groups.setdefault(f"{group_field}={value}", set()).add(document)
        if time_field and (value := _get_field(record, time_field)) is not None:
            time = _parse_time(value, time_field, where)
            self.times[document] = max(time, self.times.get(document, time))


def _get_field(record: dict[str, Any], name: str) -> Any:
    """Return a field of the record or of its metadata."""
    metadata = record.get("metadata")
    return record.get(name, metadata.get(name) if isinstance(metadata, dict) else None)


def _parse_time(value: Any, name: str, where: str) -> float:
    """Return a number as it is, a date in seconds."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            time = float(value)
        else:
            time = (value if isinstance(value, datetime) else datetime.fromisoformat(str(value))).timestamp()
    except (ValueError, OverflowError, OSError):
        time = math.nan
    if not math.isfinite(time):
        raise InputError(f"{where}: {name} must be a number or a date as in 2026-01-31, found {value!r}")
    return time


def parse_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """Return a text, or the texts of a list, each once. Raises InputError for anything else and for blank texts."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise InputError(f"{where}: expected a text, or a list of texts, under '{name}', found {value!r}")
    return tuple(dict.fromkeys(values))
