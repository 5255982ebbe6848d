"""Which documents of several weighted sources are asked about, so that each has its share of the pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from components.sdg.component import SdgConfig
from components.sdg.passages.chunking import parts, words_of
from components.sdg.read.corpus import Corpus

OVER_WEIGHT = "over the weight of its source"


def weighted(read: Corpus, records: list[dict[str, Any]], config: SdgConfig) -> tuple[Corpus, list[dict[str, Any]]]:
    """The documents and records to ask about.

    The weighted sources get pairs in proportion to their weights, as many as the one that runs out first allows;
    sources without a weight are taken whole. What pairs a record will yield is known only afterwards: the number that
    will be asked for counts. Which documents stay is drawn by a hash of the seed and the document's name, so that a
    document that is added or goes changes little of the rest.
    """
    weights = {source.name: source.weight for source in config.sources if source.weight is not None}
    asked = {id(record): asked_for(record, config) for record in records}
    totals = dict.fromkeys(weights, 0)
    for record in records:
        if record.get("source", "") in totals:
            totals[record.get("source", "")] += asked[id(record)]
    if len(weights) < 2:
        return read, records
    unit = min(totals[name] / weight for name, weight in weights.items())
    left = {name: weight * unit for name, weight in weights.items()}
    kept = {id(record) for record in records if record.get("source", "") not in weights}
    for record in sorted(records, key=lambda record: _draw(record, config)):
        source = record.get("source", "")
        # The first of each source stays in any case, so that rounding leaves none without.
        if source in left and (left[source] >= asked[id(record)] - 1e-9 or left[source] == weights[source] * unit):
            left[source] -= asked[id(record)]
            kept.add(id(record))
    chosen = [record for record in records if id(record) in kept]
    names = {name for record in chosen for name in (record["source_id"], *record["file_name"])}
    documents = [document for document in read.documents if document.source_id in names]
    over = len(read.documents) - len(documents)
    skipped = read.skipped | ({OVER_WEIGHT: over} if over else {})
    return replace(read, documents=documents, skipped=dict(sorted(skipped.items()))), chosen


def by_source(records: Sequence[dict[str, Any]], config: SdgConfig) -> dict[str, dict[str, Any]]:
    """Documents (or bundles), pairs and weight of each source."""
    found: dict[str, dict[str, Any]] = {}
    weights = {source.name: source.weight for source in config.sources}
    for record in records:
        name = record.get("source", "")
        of_one = found.setdefault(name, {"documents": 0, "pairs": 0, "weight": weights.get(name)})
        of_one["documents"] += 1
        of_one["pairs"] += len(record["deduplicated_qa_pairs"])
    return found


def asked_for(record: dict[str, Any], config: SdgConfig) -> int:
    """How many pairs there will be when nothing is rejected."""
    if config.task not in ("generate", "generate_from_chunks"):
        return len(record["qa_generation"]["pairs"])
    if config.generator == "offline":
        return config.num_pairs * len(record["chunks"])
    return sum(config.count_pairs(words_of(part)) for part in parts(record["chunks"], config.max_prompt_words))


def _draw(record: dict[str, Any], config: SdgConfig) -> bytes:
    return hashlib.sha256(f"{config.seed}:{record['source_id']}".encode()).digest()
