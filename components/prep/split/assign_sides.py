"""Gives each group of documents to a side of the split, so that the sides get their shares of the questions."""

from __future__ import annotations

import bisect
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from components.core.errors import InputError
from components.prep.read.records import Records

SIDES = ("train", "val", "test")
Group = Sequence[str]


def assign_shuffled(
    groups: Sequence[Group], records: Records, ratios: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Return the side of each document; the largest groups go first, each to the side that lacks most.

    Every side with a share gets a group with questions, as long as there are enough.
    """
    questions = Counter(example.document for example in records.examples)

    def count_questions(group: Group) -> int:
        return sum(questions[document] for document in group)

    order = list(groups)
    random.Random(seed).shuffle(order)
    asked = [group for group in order if count_questions(group)]
    not_asked = [group for group in order if not count_questions(group)]
    # Documents nobody asks about are shared out by their number: training needs their passages as negatives.
    return _share_out(asked, ratios, count_questions, fill_all=True) | _share_out(
        not_asked, ratios, len, fill_all=False
    )


def _share_out(
    groups: Sequence[Group], ratios: Mapping[str, float], size: Callable[[Group], int], *, fill_all: bool
) -> dict[str, str]:
    """Return the side of each document, by shares of ``size``; ``fill_all`` leaves no side empty."""
    side_of: dict[str, str] = {}
    ordered = sorted(groups, key=size, reverse=True)
    lacking = _compute_shares(ratios, sum(map(size, groups)))
    empty = set(lacking) if fill_all else set()
    for number, group in enumerate(ordered):
        left = len(ordered) - number
        candidates = empty if 0 < len(empty) >= left else lacking.keys()
        side = max((name for name in SIDES if name in candidates), key=lambda name: lacking[name])
        lacking[side] -= size(group)
        empty.discard(side)
        side_of |= dict.fromkeys(group, side)
    return side_of


def assign_oldest_first(groups: Sequence[Group], records: Records, ratios: Mapping[str, float]) -> dict[str, str]:
    """Return the side of each document, by the time of the newest document in its group.

    Raises InputError for a document without time.
    """
    for group in groups:
        for document in group:
            if document not in records.times:
                raise InputError(f"the document {document!r} has no time: give every record the field split_time_field")
    questions = Counter(example.document for example in records.examples)
    ordered = sorted(groups, key=lambda group: (max(records.times[document] for document in group), group))
    shares = _compute_shares(ratios, sum(questions[document] for group in groups for document in group))
    sides, ends = list(shares), list(itertools.accumulate(shares.values()))
    side_of: dict[str, str] = {}
    position, asked_before = -1, 0
    for number, group in enumerate(ordered):
        full = bisect.bisect_right(ends, asked_before + 1e-9)
        # Every side gets a group, as long as there are enough.
        needed = len(sides) - (len(ordered) - number)
        position = min(max(position, full, needed), position + 1, len(sides) - 1)
        side_of |= dict.fromkeys(group, sides[position])
        asked_before += sum(questions[document] for document in group)
    return side_of


def _compute_shares(ratios: Mapping[str, float], total: int) -> dict[str, float]:
    """Return how much of ``total`` each side should get; sides without a share are left out."""
    whole = sum(ratios.values())
    return {side: ratios[side] / whole * total for side in SIDES if ratios[side] > 1e-9}
