"""Questions and the passages that answer them, whatever they were read from."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from components.core.errors import InputError

BELOW_THRESHOLD = "score below quality_threshold"
TOO_MANY_ANSWERS = "more than max_pos_docs passages"


@dataclass(frozen=True)
class Example:
    """A question, the texts of the passages that answer it, and the document that it must not leave.

    ``generated``: a model or a heuristic wrote it, and no person.
    """

    query: str
    positives: tuple[str, ...]
    document: str
    negatives: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    generated: bool = False


@dataclass(frozen=True)
class Rules:
    """What is kept, and which fields of a record group and date its document."""

    quality_threshold: float = 7.0
    max_positives: int = 5
    group_field: str | None = None
    time_field: str | None = None


@dataclass
class Records:
    """All examples, every passage with the documents that hold it, and what was dropped, by reason.

    ``groups``: documents that stay together, by the name of what they have in common. ``times``: when a document
    was written, in seconds or in the unit of the user's numbers. ``scores``: every score that was read.
    """

    examples: list[Example] = field(default_factory=list)
    passages: dict[str, list[str]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)
    groups: dict[str, set[str]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    def add_passage(self, text: str, document: str) -> None:
        holders = self.passages.setdefault(text, [])
        if document not in holders:
            holders.append(document)

    def add_example(self, example: Example, score: float | None, rules: Rules) -> None:
        """Keep the example, or count why not."""
        if score is not None:
            self.scores.append(score)
        if score is not None and score < rules.quality_threshold:
            self.dropped[BELOW_THRESHOLD] += 1
        elif len(example.positives) > rules.max_positives:
            self.dropped[TOO_MANY_ANSWERS] += 1
        else:
            self.examples.append(example)

    def place(self, document: str, record: dict[str, Any], where: str, rules: Rules) -> None:
        """Note group and time of a document as its record gives them."""
        if rules.group_field and (value := _lookup(record, rules.group_field)) is not None:
            self.groups.setdefault(f"{rules.group_field}={value}", set()).add(document)
        if rules.time_field and (value := _lookup(record, rules.time_field)) is not None:
            time = _time(value, rules.time_field, where)
            self.times[document] = max(time, self.times.get(document, time))


def _lookup(record: dict[str, Any], name: str) -> Any:
    """A field of the record or of its metadata."""
    metadata = record.get("metadata")
    return record.get(name, metadata.get(name) if isinstance(metadata, dict) else None)


def _time(value: Any, name: str, where: str) -> float:
    """A number as it is, a date in seconds."""
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


def texts_of(value: Any, name: str, where: str) -> tuple[str, ...]:
    """A text or a list of texts, each once. Raises InputError for anything else and for blank ones."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise InputError(f"{where}: expected a text, or a list of texts, under '{name}', found {value!r}")
    return tuple(dict.fromkeys(values))
