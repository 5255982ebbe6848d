"""Which documents stay together on one side of the split, and which belong to a frozen test set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from components.prep.read.records import Records
from components.prep.split.connected import label_components
from components.prep.split.frozen import FrozenEval


def group_documents(records: Records, clusters: Mapping[str, int], frozen: FrozenEval) -> list[list[str]]:
    """Return the documents that may not be separated, in an order that does not depend on the input's.

    Documents stay together when they hold the same answer to a question of ``records`` or ``frozen``, or a
    near-duplicate of it by ``clusters`` (cluster by passage), and when ``records.groups`` says so.
    """
    holders: dict[int, list[str]] = defaultdict(list)
    for text, documents in records.passages.items():
        holders[clusters[text]] += documents
    answers = {clusters[text] for text in frozen.answers}
    together: list[Sequence[str]] = []
    for example in records.examples:
        answers |= {clusters[text] for text in example.positives}
        together.append([example.document, *(name for text in example.positives for name in records.passages[text])])
    together += [holders[cluster] for cluster in answers & holders.keys()]
    together += [list(documents) for documents in records.groups.values() if len(documents) > 1]
    names = {name for documents in (*holders.values(), *together) for name in documents}
    return _connect(sorted(names), together)


def _connect(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return groups of the sorted ``names``, ordered by their first; each of ``together`` lies within one group."""
    number = {name: place for place, name in enumerate(names)}
    links = [(number[documents[0]], number[other]) for documents in together for other in documents[1:]]
    first, second = np.array(links, dtype=np.int64).reshape(-1, 2).T
    groups: dict[int, list[str]] = defaultdict(list)
    for name, label in zip(names, label_components(len(names), first, second).tolist(), strict=True):
        groups[label].append(name)
    return list(groups.values())


def find_held_out_documents(
    records: Records, groups: Sequence[Sequence[str]], clusters: Mapping[str, int], frozen: FrozenEval
) -> set[str]:
    """Return the documents of ``frozen``: by name, by holding an answer of it, by answering with a text of it."""
    answers = {clusters[text] for text in frozen.answers if text in clusters}
    texts = {clusters[text] for text in frozen.passages}
    held_out = {document for group in groups for document in group if document in frozen.documents}
    for text, documents in records.passages.items():
        if clusters[text] in answers:
            held_out |= set(documents)
    for example in records.examples:
        if any(clusters[text] in texts for text in example.positives):
            held_out.add(example.document)
    return held_out
