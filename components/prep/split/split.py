"""Splits examples into training, validation and test without a text on two sides."""

from __future__ import annotations

import bisect
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from components.core.errors import InputError
from components.prep.read.records import Example, Records
from components.prep.split.duplicates import duplicate_clusters
from components.prep.split.frozen import FrozenEval

SIDES = ("train", "val", "test")
_HELD_OUT = "held out"
_OF_FROZEN = "of a document of frozen_eval"
_ASKED_BY_FROZEN = "asked by frozen_eval too"
_ASKED_BY_GOLDEN = "asked by golden_eval too"
_ASKED_TWICE = "asked by another side of the split too"


@dataclass(frozen=True)
class Split:
    """Examples of each side, the passages that training may see, and what the split cost.

    ``passage_clusters`` and ``query_clusters`` number texts; near-duplicates have the same number. ``dropped`` counts
    questions by reason, ``groups`` the sets of documents that stay together, ``documents`` those of each side.
    """

    train: list[Example]
    val: list[Example]
    test: list[Example]
    training_passages: list[str]
    passage_clusters: Mapping[str, int]
    query_clusters: Mapping[str, int]
    dropped: Counter[str] = field(default_factory=Counter)
    withheld_negatives: int = 0
    groups: int = 0
    documents: Counter[str] = field(default_factory=Counter)


def split(
    records: Records,
    *,
    train_ratio: float,
    val_ratio: float,
    seed: int,
    near_duplicate_threshold: float | None = None,
    by_time: bool = False,
    frozen: FrozenEval | None = None,
    golden: frozenset[str] = frozenset(),
) -> Split:
    """Split by document, whatever the order of the input.

    Documents stay together when they hold the same answer to a question, or a near-duplicate of it, and when
    ``records.groups`` says so. Groups are shuffled and shared out so that the sides get their share of the questions,
    each at least one group; ``by_time`` gives training the oldest groups and the test set the newest. With ``frozen``
    there is no test side: what belongs to that set is dropped and the others share the rest.

    Training sees no passage of which a duplicate stands in a document of another side. A validation or test question
    that training asks too is dropped, and a training question that ``frozen`` asks. What the questions ``golden`` ask,
    neither training nor validation does. Raises InputError for a document without time when ``by_time``.
    """
    frozen = frozen or FrozenEval()
    threshold = near_duplicate_threshold
    passage_clusters = duplicate_clusters([*records.passages, *frozen.passages], threshold, "passages")
    asked = [*(e.query for e in records.examples), *frozen.queries, *golden]
    query_clusters = duplicate_clusters(asked, threshold, "questions")
    groups = _groups(records, passage_clusters, frozen)
    held = _held_out(records, groups, passage_clusters, frozen)
    ratios = {"train": train_ratio, "val": val_ratio, "test": 0.0 if frozen.queries else 1 - train_ratio - val_ratio}
    free = [group for group in groups if not held & set(group)]
    side_of = _oldest_first(free, records, ratios) if by_time else _shuffled(free, records, ratios, seed)
    side_of |= dict.fromkeys((document for group in groups if held & set(group) for document in group), _HELD_OUT)
    training_passages = _training_passages(records, side_of, passage_clusters, frozen)
    sides = _questions(records, side_of)
    sides, dropped = _asked_once(sides, query_clusters, frozen, golden)
    train, withheld = _without_withheld(sides["train"], set(training_passages))
    return Split(
        train,
        sides["val"],
        sides["test"],
        training_passages,
        passage_clusters,
        query_clusters,
        dropped,
        withheld,
        len(groups),
        Counter(side_of.values()),
    )


def _groups(records: Records, clusters: Mapping[str, int], frozen: FrozenEval) -> list[list[str]]:
    """Documents that may not be separated, in an order that does not depend on the input's."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(documents: Iterable[str]) -> None:
        first, *others = documents
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low

    holders: dict[int, list[str]] = defaultdict(list)
    for text, documents in records.passages.items():
        holders[clusters[text]] += documents
        for document in documents:
            root(document)
    answers = {clusters[text] for text in frozen.answers}
    for example in records.examples:
        root(example.document)
        answers |= {clusters[text] for text in example.positives}
        join([example.document, *(name for text in example.positives for name in records.passages[text])])
    for cluster in sorted(answers & holders.keys()):
        join(holders[cluster])
    for documents in records.groups.values():
        join(documents)
    groups: dict[str, list[str]] = defaultdict(list)
    for document in sorted(parent):
        groups[root(document)].append(document)
    return [groups[name] for name in sorted(groups)]


def _held_out(
    records: Records, groups: Sequence[Sequence[str]], clusters: Mapping[str, int], frozen: FrozenEval
) -> set[str]:
    """Documents of ``frozen``: by name, by holding one of its answers, by answering with a text of its documents."""
    answers = {clusters[text] for text in frozen.answers if text in clusters}
    texts = {clusters[text] for text in frozen.passages}
    held = {document for group in groups for document in group if document in frozen.documents}
    for text, documents in records.passages.items():
        if clusters[text] in answers:
            held |= set(documents)
    for example in records.examples:
        if any(clusters[text] in texts for text in example.positives):
            held.add(example.document)
    return held


def _shuffled(
    groups: Sequence[Sequence[str]], records: Records, ratios: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Side of each document: the largest groups first, each to the side that lacks most."""
    asked = Counter(example.document for example in records.examples)
    order = list(groups)
    random.Random(seed).shuffle(order)
    side_of: dict[str, str] = {}
    with_questions = [group for group in order if any(asked[document] for document in group)]
    without = [group for group in order if not any(asked[document] for document in group)]
    # Documents nobody asks about are shared out by their number: training needs their passages as negatives.
    for part, size in (
        (with_questions, lambda group: sum(asked[document] for document in group)),
        (without, len),
    ):
        ordered = sorted(part, key=size, reverse=True)
        lacking = _shares(ratios, sum(map(size, part)))
        empty = set(lacking) if part is with_questions else set()
        for number, group in enumerate(ordered):
            left = len(ordered) - number
            choice = empty if 0 < len(empty) >= left else lacking
            side = max((name for name in SIDES if name in choice), key=lambda name: lacking[name])
            lacking[side] -= size(group)
            empty.discard(side)
            side_of |= dict.fromkeys(group, side)
    return side_of


def _oldest_first(groups: Sequence[Sequence[str]], records: Records, ratios: Mapping[str, float]) -> dict[str, str]:
    """Side of each document by the time of the newest one in its group."""
    for group in groups:
        for document in group:
            if document not in records.times:
                raise InputError(f"the document {document!r} has no time: give every record the field split_time_field")
    asked = Counter(example.document for example in records.examples)
    ordered = sorted(groups, key=lambda group: (max(records.times[document] for document in group), group))
    shares = _shares(ratios, sum(asked[document] for group in groups for document in group))
    sides, ends = list(shares), list(itertools.accumulate(shares.values()))
    side_of: dict[str, str] = {}
    position, asked_before = -1, 0
    for number, group in enumerate(ordered):
        full = bisect.bisect_right(ends, asked_before + 1e-9)
        # Every side gets a group, as long as there are as many.
        needed = len(sides) - (len(ordered) - number)
        position = min(max(position, full, needed), position + 1, len(sides) - 1)
        side_of |= dict.fromkeys(group, sides[position])
        asked_before += sum(asked[document] for document in group)
    return side_of


def _shares(ratios: Mapping[str, float], total: int) -> dict[str, float]:
    """What each side should get of ``total``; sides with nothing are left out."""
    whole = sum(ratios.values())
    return {side: ratios[side] / whole * total for side in SIDES if ratios[side] > 1e-9}


def _training_passages(
    records: Records, side_of: Mapping[str, str], clusters: Mapping[str, int], frozen: FrozenEval
) -> list[str]:
    """Passages of training documents that have no duplicate in a document of another side."""
    elsewhere = {clusters[text] for text in frozen.passages}
    for text, documents in records.passages.items():
        if any(side_of[document] != "train" for document in documents):
            elsewhere.add(clusters[text])
    return sorted(text for text in records.passages if clusters[text] not in elsewhere)


def _questions(records: Records, side_of: Mapping[str, str]) -> dict[str, list[Example]]:
    sides: dict[str, list[Example]] = {side: [] for side in (*SIDES, _HELD_OUT)}
    for example in sorted(records.examples, key=lambda e: (e.document, e.query, e.positives)):
        sides[side_of[example.document]].append(example)
    return sides


def _asked_once(
    sides: Mapping[str, list[Example]], clusters: Mapping[str, int], frozen: FrozenEval, golden: frozenset[str]
) -> tuple[dict[str, list[Example]], Counter[str]]:
    """Every question stays on one side: that of ``frozen``, then training, then test.

    ``golden`` is judged by beside the test set, and may ask what that asks.
    """
    dropped = Counter({_OF_FROZEN: len(sides[_HELD_OUT])})
    taken = {clusters[query] for query in frozen.queries}
    in_golden = {clusters[query] for query in golden}
    kept: dict[str, list[Example]] = {}
    for side, reason in (("train", _ASKED_BY_FROZEN), ("test", _ASKED_TWICE), ("val", _ASKED_TWICE)):
        once = [example for example in sides[side] if clusters[example.query] not in taken]
        kept[side] = [example for example in once if side == "test" or clusters[example.query] not in in_golden]
        dropped[reason] += len(sides[side]) - len(once)
        dropped[_ASKED_BY_GOLDEN] += len(once) - len(kept[side])
        taken |= {clusters[example.query] for example in kept[side]}
    return kept, +dropped


def _without_withheld(train: Sequence[Example], seen: set[str]) -> tuple[list[Example], int]:
    """The examples with those of a user's negatives that training may see, and how many it may not."""
    kept = [replace(e, negatives=tuple(text for text in e.negatives if text in seen)) for e in train]
    return kept, sum(len(e.negatives) for e in train) - sum(len(e.negatives) for e in kept)
