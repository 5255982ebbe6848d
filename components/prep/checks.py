"""What a person should know about the split and the negatives: warnings, and errors where nothing can be trained."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence

from components.core.errors import InputError
from components.prep.component import HardNegativeSettings, SplitSettings
from components.prep.mine.mining import MinedExample
from components.prep.read.records import Records
from components.prep.split.data_split import DataSplit

FEW_EVAL_QUERIES = 50
FEW_TRAINING_EXAMPLES = 100
_log = logging.getLogger(__name__)


def check_split(settings: SplitSettings, records: Records, split: DataSplit, *, has_frozen_eval: bool) -> list[str]:
    """Log the counts of the split; return warnings about it.

    Raises InputError for a side that is empty and should not be.
    """
    _log.info(
        "%d questions, %d passages; dropped: %s; by the split: %s",
        len(records.examples),
        len(records.passages),
        dict(records.dropped) or "none",
        dict(split.dropped) or "none",
    )
    _log.info("train %d, validation %d, test %d questions", len(split.train), len(split.val), len(split.test))
    for name, side, required in (
        ("train", split.train, True),
        ("test", split.test, settings.test_ratio > 0 and not has_frozen_eval),
    ):
        if required and not side:
            why = "".join(f"; {count} x {reason}" for reason, count in split.dropped.items())
            raise InputError(
                f"the split leaves the {name} side empty ({len(records.examples)} questions, {split.groups} groups of "
                f"documents that share answers or belong together{why}): give more documents or change {name}_ratio"
            )
    warnings = []
    if not has_frozen_eval and len(split.test) < FEW_EVAL_QUERIES:
        warnings.append(f"only {len(split.test)} test questions: differences of a few points will be noise")
    if len(split.train) < FEW_TRAINING_EXAMPLES:
        warnings.append(f"only {len(split.train)} training questions: expect little")
    if split.withheld_negatives:
        warnings.append(
            f"{split.withheld_negatives} given negatives left out: their text stands in documents that are held out"
        )
    return warnings


def check_negatives(settings: HardNegativeSettings, mined: Sequence[MinedExample]) -> list[str]:
    """Return warnings about questions with too few negatives. Raises InputError when no question has a negative."""
    asked_for = settings.hard_negatives_to_mine
    counts = [len(example.negatives) for example in mined]
    if not any(counts):
        raise InputError(
            "no hard negative was found for any question: give more documents, or raise hard_neg_margin "
            f"({settings.hard_neg_margin:g})"
        )
    warnings = []
    if short := sum(0 < count < asked_for for count in counts):
        warnings.append(
            f"{short} of {len(counts)} questions have fewer than {asked_for} negatives (median "
            f"{statistics.median(counts):g}); training repeats those they have"
        )
    if none := counts.count(0):
        warnings.append(f"{none} of {len(counts)} questions have no negative at all and are left out")
    return warnings
