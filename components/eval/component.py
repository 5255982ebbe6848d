"""eval: base against fine-tuned on held-out questions, and the gate."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.core.retrieval.encoding_settings import EmbeddingSettings
from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage, StageGate, s3_secrets


class SystemSettings(Settings):
    """Which models are evaluated, and by which metrics."""

    k_values: list[Annotated[int, Field(gt=0)]] = setting(
        [1, 5, 10, 100], "Cut-offs of nDCG, MAP, Recall, Precision and MRR", form=True, min_length=1
    )
    eval_base: bool = setting(True, "Evaluate the base model", form=True)
    eval_finetuned: bool = setting(True, "Evaluate the fine-tuned model", form=True)
    eval_nim: bool = setting(False, "Evaluate a served endpoint", form=True)
    eval_bm25: bool = setting(True, "Evaluate BM25 (word matching) as a reference")
    eval_dimensions: list[Annotated[int, Field(gt=0)]] = setting(
        [], "Also evaluate vectors cut to these dimensions and scaled to length 1 again (Matryoshka)"
    )


class NimSettings(Settings):
    """The endpoint that is evaluated with ``eval_nim``."""

    nim_url: str = setting("http://localhost:8000", "Base URL of the endpoint")
    nim_model: str = setting("nvidia/llama-3.2-nv-embedqa-1b-v2", "Name of the model at the endpoint")
    embedding_api_backend: Literal["nim", "vllm"] = setting(
        "nim", "API of the endpoint: NIM's `/v1/embeddings`, as this project's server has it, or vLLM's `/v2/embed`"
    )
    nim_invalid_embedding_retries: int = setting(
        3, "How often a text whose vector contains NaN or infinity is sent again, on its own", ge=0
    )
    nim_batch_size: int = setting(32, "Texts per request to the endpoint", gt=0)
    nim_timeout: float = setting(60.0, "Seconds for one request to the endpoint", gt=0)


class DriftSettings(Settings):
    """How far the endpoint may be from the checkpoint that it should serve."""

    nim_metric_tolerance: float = setting(
        0.01, "Largest difference of a metric between checkpoint and endpoint, from cut-off 5 on", ge=0
    )
    nim_metric_low_k_tolerance: float = setting(0.03, "The same below cut-off 5", ge=0)
    fail_on_nim_metric_drift: bool = setting(
        False, "Fail the gate on a larger difference; set it if the endpoint serves this checkpoint"
    )


class GateSettings(DriftSettings):
    """What the fine-tuned model has to show to pass the gate."""

    gate_metric: Literal["ndcg", "map", "recall", "precision", "mrr"] = setting("ndcg", "Metric of the gate")
    gate_k: int = setting(10, "Cut-off of the gate's metric; computed even when not in `k_values`", gt=0)
    min_gain: float = setting(0.0, "Smallest absolute gain over the base model that passes the gate", form=True)
    min_eval_queries: int = setting(20, "Smallest number of test queries with which the gate can pass", ge=1)
    max_p_value: float | None = setting(
        None,
        "Largest p-value of the gain (paired randomisation test) that passes the gate; null does not test it",
        gt=0,
        le=1,
    )
    min_gain_lower_bound: float | None = setting(
        None, "Smallest lower end of the gain's 95 % confidence interval that passes the gate; null does not test it"
    )
    max_slice_loss: float | None = setting(
        None,
        "Largest loss on any kind of query, with at least `min_eval_queries` queries, that passes the gate; "
        "null allows any",
        ge=0,
    )
    min_champion_gain: float = setting(
        0.0, "Smallest absolute gain over `champion`, if there is one, that passes the gate"
    )
    max_golden_loss: float | None = setting(
        None, "Largest loss on `golden_eval` that passes the gate; null allows any", ge=0
    )


class EvalConfig(GateSettings, NimSettings, SystemSettings, EmbeddingSettings):
    """Settings of eval. Names and defaults are the recipe's where it has them."""

    def list_cutoffs(self) -> list[int]:
        """Return the cut-offs that are measured: ``k_values`` and that of the gate, ascending."""
        return sorted({*self.k_values, self.gate_k})

    @model_validator(mode="after")
    def _has_something_to_evaluate(self) -> Self:
        if not (self.eval_base or self.eval_finetuned or self.eval_nim):
            raise ValueError("eval_base, eval_finetuned and eval_nim are all false: set one to true")
        if self.fail_on_nim_metric_drift and not (self.eval_finetuned and self.eval_nim):
            raise ValueError("fail_on_nim_metric_drift compares two models: set eval_finetuned and eval_nim to true")
        return self


STAGE = Stage(
    name="eval",
    summary="Compare base and fine-tuned model, decide the gate",
    config=EvalConfig,
    inputs=("checkpoint", "eval_data"),
    optional_inputs=("golden_eval", "champion", "past_runs"),
    from_champion={"champion": "checkpoint"},
    outputs=("eval_results", "report"),
    results={"passed": bool},
    gate=StageGate("passed", "quality-gate"),
    headline=("gain", "passed"),
    image="gpu",
    node=Node(gpu="A100", cpu="8", memory="64Gi", shared_memory="16Gi"),
    secrets=(
        Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),
        Secret(env="NIM_API_KEY", name="nim-api-key", key="NIM_API_KEY"),
        *s3_secrets("history-s3"),
    ),
)
