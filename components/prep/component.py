"""prep: split by document, mine hard negatives with the base model, unroll."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from components.core.encoder.config import EncoderConfig
from components.core.retrieval.encoding_settings import EmbeddingSettings
from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage, s3_secrets


class DocumentFieldSettings(Settings):
    """Fields of a record that say which documents stay together and when they were written."""

    split_group_field: str | None = setting(
        None, "Field of the records, or of their metadata: documents with the same value stay together", min_length=1
    )
    split_time_field: str | None = setting(
        None, "Field with a date or number: the oldest documents train, the newest test; null shuffles", min_length=1
    )


class RecordSettings(DocumentFieldSettings):
    """Settings of ``components.prep.read``: which questions are kept."""

    quality_threshold: float = setting(
        7.0, "Lowest overall score of a pair that is kept; pairs without a score are kept", form=True, ge=0, le=10
    )
    max_pos_docs: int = setting(5, "Largest number of passages that may answer one question", gt=0)


class SeedSettings(Settings):
    """The seed of everything random in prep."""

    conversion_seed: int = setting(42, "Seed of the split and of sampled negatives", ge=0)


class SplitSettings(SeedSettings, DocumentFieldSettings):
    """Settings of ``components.prep.split``."""

    train_ratio: float = setting(0.8, "Share of documents to train on", gt=0, lt=1)
    val_ratio: float = setting(0.0, "Share of documents for validation", ge=0, lt=1)
    test_ratio: float = setting(0.2, "Share of documents for the test set", ge=0, lt=1)
    near_duplicate_threshold: float | None = setting(
        0.8,
        "Texts that share at least this fraction of their three-word sequences count as the same: they are "
        "never on two sides of the split, nor negatives of each other's questions; null compares whole "
        "texts only",
        ge=0.5,
        le=1,
    )

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> Self:
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train_ratio + val_ratio + test_ratio must be 1, found {total:g}")
        return self


class HardNegativeSettings(Settings):
    """Settings of ``components.prep.mine.hard_negatives``: which candidates become negatives."""

    hard_negatives_to_mine: int = setting(5, "Hard negatives per query", form=True, gt=0)
    hard_neg_margin: float = setting(
        0.95, "A negative scores at most this fraction of the query's worst positive", gt=0, le=1
    )
    hard_neg_absolute_margin: float = setting(
        0.0, "A negative scores at least this much less than the query's worst positive", ge=0
    )
    hard_neg_range_min: int = setting(
        0, "Number of best candidates that are skipped, of those within the margins", ge=0
    )
    hard_neg_range_max: int | None = setting(
        None, "Last rank of a negative among those candidates; required for sampling; null takes the first ones", gt=0
    )
    hard_neg_sampling: Literal["top", "random"] = setting(
        "top", "Which candidates of the rank range become negatives: the best, or random ones by `conversion_seed`"
    )

    @property
    def candidate_depth(self) -> int:
        """How many of the best candidates are needed."""
        return self.hard_neg_range_max or self.hard_neg_range_min + self.hard_negatives_to_mine

    @model_validator(mode="after")
    def _rank_range_holds_the_negatives(self) -> Self:
        if self.hard_neg_range_max is None:
            if self.hard_neg_sampling == "random":
                raise ValueError("hard_neg_sampling random needs hard_neg_range_max: set the last rank to draw from")
        elif self.hard_neg_range_max - self.hard_neg_range_min < self.hard_negatives_to_mine:
            raise ValueError(
                f"hard_neg_range_min {self.hard_neg_range_min} to hard_neg_range_max {self.hard_neg_range_max} holds "
                f"fewer than hard_negatives_to_mine {self.hard_negatives_to_mine}: widen the range"
            )
        return self


class MiningSettings(HardNegativeSettings, SeedSettings):
    """Settings of ``components.prep.mine.mining``."""

    mining_batch_size: int = setting(128, "Queries scored at once", gt=0)


class PrepConfig(MiningSettings, SplitSettings, RecordSettings, EncoderConfig, EmbeddingSettings):
    """Settings of prep. Names and defaults are the recipe's where it has them."""

    round_trip_top_k: int | None = setting(
        None,
        "Train on a generated question only if the mining model ranks its passage among the first so many; "
        "null trains on all",
        gt=0,
    )


STAGE = Stage(
    name="prep",
    summary="Split, mine hard negatives, unroll",
    config=PrepConfig,
    inputs=("qa_pairs",),
    optional_inputs=("golden_eval", "frozen_eval", "miner", "checker", "past_runs"),
    from_champion={"frozen_eval": "eval_data"},
    outputs=("training_data", "eval_data", "data_report"),
    headline=("train_questions", "mined_negatives", "eval_queries"),
    image="gpu",
    node=Node(gpu="A100", cpu="16", memory="64Gi", shared_memory="16Gi"),
    secrets=(Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"), *s3_secrets("history-s3")),
)
