"""Selects the documents of several weighted sources that are asked about, so that each has its share of the pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from components.sdg.component import SdgConfig
from components.sdg.passages.chunking import count_words, split_into_parts
from components.sdg.read.corpus import Corpus
from components.sdg.records import Json, QaRecord
from components.sdg.settings.generation_settings import GenerationSettings
from components.sdg.settings.reading_settings import CorpusSource

OVER_WEIGHT = "over the weight of its source"


@dataclass
class SourceCounts:
    """What one of several sources gave.

    Attributes:
        weight: Its weight in the settings; None takes all of it.
        documents: Number of its documents, or bundles of documents.
        pairs: Number of their pairs.
    """

    weight: float | None
    documents: int = 0
    pairs: int = 0

    def to_json(self) -> Json:
        """Return the counts as JSON values."""
        return {"documents": self.documents, "pairs": self.pairs, "weight": self.weight}


def select_by_weight(corpus: Corpus, records: list[QaRecord], config: SdgConfig) -> tuple[Corpus, list[QaRecord]]:
    """Return the documents and records to ask about.

    The weighted sources get pairs in proportion to their weights, as many as the one that runs out first allows;
    sources without a weight are taken whole. What pairs a record will yield is known only afterwards: the number that
    will be asked for counts. Which documents stay is drawn by a hash of the seed and the document's name, so that a
    document that is added or goes changes little of the rest.
    """
    weights = {source.name: source.weight for source in config.sources if source.weight is not None}
    if len(weights) < 2:
        return corpus, records
    expected = {record.source_id: count_expected_pairs(record, config) for record in records}
    totals = dict.fromkeys(weights, 0)
    for record in records:
        if record.source in totals:
            totals[record.source] += expected[record.source_id]
    unit = min(totals[name] / weight for name, weight in weights.items())
    left = {name: weight * unit for name, weight in weights.items()}
    kept = {record.source_id for record in records if record.source not in weights}
    for record in sorted(records, key=lambda record: _hash_name(record, config.seed)):
        name, pairs = record.source, expected[record.source_id]
        # The first of each source stays in any case, so that rounding leaves none without.
        if name in left and (left[name] >= pairs - 1e-9 or left[name] == weights[name] * unit):
            left[name] -= pairs
            kept.add(record.source_id)
    selected = [record for record in records if record.source_id in kept]
    names = {name for record in selected for name in (record.source_id, *record.file_name)}
    documents = [document for document in corpus.documents if document.source_id in names]
    over = len(corpus.documents) - len(documents)
    skipped = corpus.skipped | ({OVER_WEIGHT: over} if over else {})
    return replace(corpus, documents=documents, skipped=dict(sorted(skipped.items()))), selected


def count_by_source(records: Sequence[QaRecord], sources: Iterable[CorpusSource]) -> dict[str, SourceCounts]:
    """Return what each of ``sources``, the setting, gave, by name."""
    weights = {source.name: source.weight for source in sources}
    counts: dict[str, SourceCounts] = {}
    for record in records:
        source = counts.setdefault(record.source, SourceCounts(weights.get(record.source)))
        source.documents += 1
        source.pairs += len(record.pairs)
    return counts


def count_expected_pairs(record: QaRecord, settings: GenerationSettings) -> int:
    """Return how many pairs ``record`` will have when nothing is rejected."""
    if settings.task not in ("generate", "generate_from_chunks"):
        return len(record.candidates)
    if settings.generator == "offline":
        return settings.num_pairs * len(record.chunks)
    parts = split_into_parts(record.chunks, settings.max_prompt_words)
    return sum(settings.count_pairs(count_words(part)) for part in parts)


def _hash_name(record: QaRecord, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{record.source_id}".encode()).digest()
