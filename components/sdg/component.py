"""sdg: questions and answers from documents, by a hosted LLM or offline."""

from __future__ import annotations

from components.core.encoder.config import EncoderConfig
from components.core.stage import Node, Secret, Stage, StageGate, s3_secrets
from components.sdg.settings.budget_settings import BudgetSettings, HistorySettings
from components.sdg.settings.chunking_settings import BundleSettings, ChunkingSettings
from components.sdg.settings.generation_settings import GenerationSettings
from components.sdg.settings.llm_settings import LlmSettings, RequestSettings
from components.sdg.settings.reading_settings import ReadingSettings


# pydantic collects fields from the last base to the first.
class SdgConfig(
    HistorySettings,
    BudgetSettings,
    RequestSettings,
    LlmSettings,
    GenerationSettings,
    BundleSettings,
    ChunkingSettings,
    ReadingSettings,
    EncoderConfig,
):
    """Settings of sdg. Names and defaults are the recipe's where it has them.

    The encoder's settings say how long a passage may be for the model that will be trained.
    """


STAGE = Stage(
    name="sdg",
    summary="Generate question-answer pairs from documents",
    config=SdgConfig,
    inputs=("corpus",),
    replaced_by={"corpus": "sources"},
    outputs=("qa_pairs", "generation_report", "past_runs"),
    results={"changed": bool},
    gate=StageGate("changed", "new-documents", keeps=True),
    headline=("documents", "passages", "pairs"),
    image="cpu",
    node=Node(cpu="8", memory="16Gi"),
    secrets=(
        Secret(env="NVIDIA_API_KEY", name="nvidia-api-key", key="NVIDIA_API_KEY"),
        # For other endpoints, by the names that providers.*.api_key_env may give.
        *(Secret(env=name, name="llm-keys", key=name) for name in ("LLM_API_KEY", "JUDGE_API_KEY", "EMBED_API_KEY")),
        Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),
        *s3_secrets("ledger-s3"),
    ),
    previews=True,
)
