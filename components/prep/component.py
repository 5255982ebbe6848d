"""prep: split by document, mine hard negatives with the base model, unroll."""

from __future__ import annotations

from pydantic import model_validator

from components.core.encoder.config import EncoderConfig
from components.core.settings import setting
from components.core.stage import Node, Secret, Stage


class PrepConfig(EncoderConfig):
    """Settings of prep. Names and defaults are the recipe's where it has them."""

    quality_threshold: float = setting(
        7.0, "Lowest overall score of a judged pair; pairs without a score are kept", form=True, ge=0, le=10
    )
    train_ratio: float = setting(0.8, "Share of documents to train on", gt=0, lt=1)
    val_ratio: float = setting(0.0, "Share of documents for validation", ge=0, lt=1)
    test_ratio: float = setting(0.2, "Share of documents for the test set", ge=0, lt=1)
    conversion_seed: int = setting(42, "Seed of the split")
    max_pos_docs: int = setting(5, "Most passages that one question may have as answers", gt=0)
    hard_negatives_to_mine: int = setting(5, "Hard negatives per query", form=True, gt=0)
    hard_neg_margin: float = setting(
        0.95, "A negative scores at most this share of the query's worst positive", gt=0, le=1
    )
    mining_batch_size: int = setting(128, "Queries scored at once", gt=0)
    encode_batch_tokens: int = setting(16384, "Tokens encoded at once, padding included", gt=0)

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> PrepConfig:
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train_ratio + val_ratio + test_ratio must be 1, found {total:g}")
        return self


STAGE = Stage(
    name="prep",
    summary="Split, mine hard negatives, unroll",
    config=PrepConfig,
    inputs=("qa_pairs",),
    outputs=("training_data", "eval_data"),
    image="gpu",
    node=Node(gpu="A100", cpu="16", memory="64Gi", shared_memory="16Gi"),
    secrets=(Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),),
)
