"""Metrics by kind of query: a mean can hide a kind that became worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.core.retrieval.beir_data import BeirData
from components.eval.metrics import Scores

# Fields that the metadata of a query may have in queries.jsonl.
FIELDS = (
    "query_type", "reasoning_type", "hop_count", "question_complexity", "question_style", "synthetic_method", "source",
)  # fmt: skip
_LENGTHS = ((4, "1 to 4 words"), (9, "5 to 9 words"), (19, "10 to 19 words"))
_LONGEST = "20 words and more"


@dataclass(frozen=True)
class Slice:
    """Queries of one kind: ``field`` has ``value``. ``means`` holds the mean of the asked metric by system."""

    field: str
    value: str
    queries: int
    means: Mapping[str, float]

    @property
    def gain(self) -> float | None:
        """Fine-tuned less base; None unless both were evaluated."""
        if not {"base", "finetuned"} <= set(self.means):
            return None
        return round(self.means["finetuned"] - self.means["base"], 5)


def slice_by_kind(data: BeirData, scores: Mapping[str, Scores], metric: str) -> tuple[Slice, ...]:
    """Measure the queries of ``data`` by metadata and by length, without fields that are the same for all queries."""
    slices: list[Slice] = []
    for field in (*FIELDS, "length"):
        groups: dict[str, list[str]] = {}
        for query, text in data.queries.items():
            value = _length_class(text) if field == "length" else data.query_metadata.get(query, {}).get(field)
            if value is not None:
                groups.setdefault(str(value), []).append(query)
        if len(groups) > 1:
            slices += [
                _measure_slice(field, value, groups[value], scores, metric) for value in sorted(groups, key=_sort_key)
            ]
    return tuple(slices)


def _measure_slice(field: str, value: str, queries: list[str], scores: Mapping[str, Scores], metric: str) -> Slice:
    means = {
        system: round(sum(score.per_query[query][metric] for query in queries) / len(queries), 5)
        for system, score in scores.items()
    }
    return Slice(field, value, len(queries), means)


def _length_class(text: str) -> str:
    words = len(text.split())
    return next((label for most, label in _LENGTHS if words <= most), _LONGEST)


def _sort_key(value: str) -> tuple[int, str]:
    """Sort values that begin with a number by that number, others by name."""
    first = value.split(" ", 1)[0]
    return (int(first) if first.isdecimal() else 0, value)
