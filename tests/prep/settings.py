"""Groups of prep's settings in few words; what is not named here has no effect."""

from __future__ import annotations

from typing import Any

from components.prep.component import HardNegativeSettings, MiningSettings, SplitSettings
from components.prep.read.records import Records
from components.prep.split.data_split import DataSplit, split_by_document


def split(
    records: Records,
    *,
    train_ratio: float,
    val_ratio: float,
    seed: int,
    near_duplicate_threshold: float | None = None,
    by_time: bool = False,
    **withheld: Any,
) -> DataSplit:
    settings = SplitSettings(
        train_ratio=train_ratio,
        val_ratio=val_ratio,
        test_ratio=max(1 - train_ratio - val_ratio, 0),
        conversion_seed=seed,
        near_duplicate_threshold=near_duplicate_threshold,
        split_time_field="time" if by_time else None,
    )
    return split_by_document(records, settings, **withheld)


def negatives(count: int, *, margin: float = 1.0, **others: Any) -> HardNegativeSettings:
    return HardNegativeSettings(**_named(count, margin, others))


def mining(count: int, *, margin: float = 1.0, batch: int, **others: Any) -> MiningSettings:
    return MiningSettings(mining_batch_size=batch, conversion_seed=0, **_named(count, margin, others))


def _named(count: int, margin: float, others: dict[str, Any]) -> dict[str, Any]:
    named = {f"hard_neg_{name}": value for name, value in others.items()}
    return {"hard_negatives_to_mine": count, "hard_neg_margin": margin, **named}
