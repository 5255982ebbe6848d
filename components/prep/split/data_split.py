"""Splits examples into training, validation and test without a text on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from components.prep.component import SplitSettings
from components.prep.read.records import QueryExample, Records
from components.prep.split.assign_sides import SIDES, assign_oldest_first, assign_shuffled
from components.prep.split.document_groups import find_held_out_documents, group_documents
from components.prep.split.duplicates import cluster_duplicates
from components.prep.split.frozen import FrozenEval

_HELD_OUT = "held out"
_OF_FROZEN = "of a document of frozen_eval"
_ASKED_BY_FROZEN = "asked by frozen_eval too"
_ASKED_BY_GOLDEN = "asked by golden_eval too"
_ASKED_TWICE = "asked by another side of the split too"


@dataclass(frozen=True)
class DataSplit:
    """The examples of each side, the passages that training may see, and what the split cost.

    ``passage_clusters`` and ``query_clusters`` number texts; near-duplicates have the same number. ``dropped`` counts
    questions by reason, ``groups`` the sets of documents that stay together, ``documents`` those of each side.
    """

    train: list[QueryExample]
    val: list[QueryExample]
    test: list[QueryExample]
    training_passages: list[str]
    passage_clusters: Mapping[str, int]
    query_clusters: Mapping[str, int]
    dropped: Counter[str] = field(default_factory=Counter)
    withheld_negatives: int = 0
    groups: int = 0
    documents: Counter[str] = field(default_factory=Counter)


def split_by_document(
    records: Records,
    settings: SplitSettings,
    *,
    frozen: FrozenEval | None = None,
    golden: frozenset[str] = frozenset(),
) -> DataSplit:
    """Split by document, whatever the order of the input.

    Groups of documents that stay together (``group_documents``) are shuffled and shared out so that the sides get
    their share of the questions, each at least one group; with ``split_time_field`` training gets the oldest groups
    and the test set the newest. With ``frozen`` there is no test side: what belongs to that set is dropped and the
    others share the rest.

    Training sees no passage that has a duplicate in a document of another side. A validation or test question that
    training asks too is dropped, and so is a training question that ``frozen`` asks. Neither training nor validation
    asks a question of ``golden``. Raises InputError for a document without time if ``split_time_field`` is set.
    """
    frozen = frozen or FrozenEval()
    threshold = settings.near_duplicate_threshold
    passage_clusters = cluster_duplicates([*records.passages, *frozen.passages], threshold, "passages")
    queries = [*(example.query for example in records.examples), *frozen.queries, *golden]
    query_clusters = cluster_duplicates(queries, threshold, "questions")
    groups = group_documents(records, passage_clusters, frozen)
    held_out = find_held_out_documents(records, groups, passage_clusters, frozen)
    side_of = _assign_sides(records, settings, groups, held_out, frozen)
    training_passages = _select_training_passages(records, side_of, passage_clusters, frozen)
    sides, dropped = _drop_repeated_questions(_sort_examples(records, side_of), query_clusters, frozen, golden)
    train, withheld = _drop_withheld_negatives(sides["train"], set(training_passages))
    return DataSplit(
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


def _assign_sides(
    records: Records,
    settings: SplitSettings,
    groups: Sequence[Sequence[str]],
    held_out: set[str],
    frozen: FrozenEval,
) -> dict[str, str]:
    """Return the side of each document; groups with a document of ``held_out`` are held out as a whole."""
    test_ratio = 0.0 if frozen.queries else 1 - settings.train_ratio - settings.val_ratio
    ratios = {"train": settings.train_ratio, "val": settings.val_ratio, "test": test_ratio}
    free = [group for group in groups if not held_out & set(group)]
    if settings.split_time_field is not None:
        side_of = assign_oldest_first(free, records, ratios)
    else:
        side_of = assign_shuffled(free, records, ratios, settings.conversion_seed)
    documents = (document for group in groups if held_out & set(group) for document in group)
    return side_of | dict.fromkeys(documents, _HELD_OUT)


def _select_training_passages(
    records: Records, side_of: Mapping[str, str], clusters: Mapping[str, int], frozen: FrozenEval
) -> list[str]:
    """Return the passages of training documents that have no duplicate in a document of another side."""
    elsewhere = {clusters[text] for text in frozen.passages}
    for text, documents in records.passages.items():
        if any(side_of[document] != "train" for document in documents):
            elsewhere.add(clusters[text])
    return sorted(text for text in records.passages if clusters[text] not in elsewhere)


def _sort_examples(records: Records, side_of: Mapping[str, str]) -> dict[str, list[QueryExample]]:
    sides: dict[str, list[QueryExample]] = {side: [] for side in (*SIDES, _HELD_OUT)}
    for example in sorted(records.examples, key=lambda e: (e.document, e.query, e.positives)):
        sides[side_of[example.document]].append(example)
    return sides


def _drop_repeated_questions(
    sides: Mapping[str, list[QueryExample]], clusters: Mapping[str, int], frozen: FrozenEval, golden: frozenset[str]
) -> tuple[dict[str, list[QueryExample]], Counter[str]]:
    """Keep every question on one side: that of ``frozen``, then training, then test; also return what was dropped.

    ``golden`` is evaluated beside the test set, so the test set may ask its questions.
    """
    dropped = Counter({_OF_FROZEN: len(sides[_HELD_OUT])})
    taken = {clusters[query] for query in frozen.queries}
    in_golden = {clusters[query] for query in golden}
    kept: dict[str, list[QueryExample]] = {}
    for side, reason in (("train", _ASKED_BY_FROZEN), ("test", _ASKED_TWICE), ("val", _ASKED_TWICE)):
        once = [example for example in sides[side] if clusters[example.query] not in taken]
        kept[side] = [example for example in once if side == "test" or clusters[example.query] not in in_golden]
        dropped[reason] += len(sides[side]) - len(once)
        dropped[_ASKED_BY_GOLDEN] += len(once) - len(kept[side])
        taken |= {clusters[example.query] for example in kept[side]}
    return kept, +dropped


def _drop_withheld_negatives(train: Sequence[QueryExample], visible: set[str]) -> tuple[list[QueryExample], int]:
    """Keep those of a user's negatives that training may see; also return how many it may not see."""
    kept = [replace(e, negatives=tuple(text for text in e.negatives if text in visible)) for e in train]
    return kept, sum(len(e.negatives) for e in train) - sum(len(e.negatives) for e in kept)
