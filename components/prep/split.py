"""Splits examples into training, validation and test without a text on two sides."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from components.prep.records import Example, Records


@dataclass(frozen=True)
class Split:
    """Examples of each side, the passages that training may see, and queries dropped as repeated."""

    train: list[Example]
    val: list[Example]
    test: list[Example]
    training_passages: list[str]
    repeated_queries: int


def split(records: Records, *, train_ratio: float, val_ratio: float, seed: int) -> Split:
    """Split by document: a seeded shuffle of document groups, whatever their order in the input.

    Documents that share a passage form one group and stay together, so that no text is both trained on and tested
    with. Training gets at least one group, and the test set what the ratios leave. A test or validation question
    that training asks too is dropped.
    """
    groups = _groups(records)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    train_end = max(1, int(len(names) * train_ratio + 1e-9))
    val_end = train_end + int(len(names) * val_ratio + 1e-9)
    sides = [names[:train_end], names[train_end:val_end], names[val_end:]]
    side_of = {document: side for side, part in enumerate(sides) for name in part for document in groups[name]}
    examples: list[list[Example]] = [[], [], []]
    for example in sorted(records.examples, key=lambda e: (e.document, e.query, e.positives)):
        examples[side_of[example.document]].append(example)
    asked = {_folded(example.query) for example in examples[0]}
    kept = [[e for e in examples[side] if _folded(e.query) not in asked] for side in (1, 2)]
    repeated = len(examples[1]) + len(examples[2]) - len(kept[0]) - len(kept[1])
    training_passages = sorted(text for text, documents in records.passages.items() if side_of[documents[0]] == 0)
    return Split(examples[0], kept[0], kept[1], training_passages, repeated)


def _groups(records: Records) -> dict[str, list[str]]:
    """Documents joined by a common passage; each group under the name of its first document."""
    parent: dict[str, str] = {}

    def root(document: str) -> str:
        parent.setdefault(document, document)
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    by_text: dict[str, str] = {}
    for text, documents in records.passages.items():
        holder = by_text.setdefault(_folded(text), documents[0])
        for document in documents:
            first, second = sorted((root(holder), root(document)))
            parent[second] = first
    groups: dict[str, list[str]] = defaultdict(list)
    for document in sorted(parent):
        groups[root(document)].append(document)
    return dict(groups)


def _folded(text: str) -> str:
    """Equal for texts that differ only in case and white space."""
    return " ".join(text.casefold().split())
