"""Settings of sdg: how many questions of which kinds are made, and what is asked of the LLM."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from components.core.settings import setting
from components.sdg.settings.llm_settings import ChatRole
from components.sdg.settings.reading_settings import TaskSettings

QueryType = Literal["multi_hop", "structural", "contextual"]
ReasoningType = Literal["factual", "relational", "inferential", "temporal", "procedural", "causal", "visual"]
QuestionStyle = Literal["question", "keywords", "problem"]
BundleStrategy = Literal["sequential", "doc_balanced", "interleaved"]
OfflineMethod = Literal["keywords", "inverse_cloze", "cropping", "mixed"]


class GenerationSettings(TaskSettings):
    """Numbers and kinds of questions, and the contents of the prompts."""

    num_sections: int = setting(1, "Sections into which a document's passages are divided for the LLM", gt=0)
    bundle_strategy: BundleStrategy = setting(
        "sequential", "How the passages of a bundle are divided among its sections"
    )
    num_pairs: int = setting(7, "Questions per document (`llm`), or per passage at most (`offline`)", gt=0)
    num_pairs_per_1000_words: float = setting(
        0.0,
        "Questions per thousand words of a document, if that is more than `num_pairs`",
        ge=0,
    )
    max_prompt_words: int = setting(
        6000, "Longer documents are split into parts of at most this many words, with `num_pairs` questions each", gt=0
    )
    query_counts: dict[QueryType, int] = setting(
        {"multi_hop": 3, "structural": 2, "contextual": 2}, "Shares of the kinds of question, scaled to `num_pairs`"
    )
    reasoning_counts: dict[ReasoningType, int] = setting(
        {"factual": 1, "relational": 1, "inferential": 1, "temporal": 1, "procedural": 1, "causal": 1},
        "Shares of the kinds of reasoning, scaled to `num_pairs`; the recipe's `visual` needs pictures",
    )
    question_styles: dict[QuestionStyle, int] = setting(
        {"question": 4, "keywords": 2, "problem": 1},
        "Shares of the forms of a query: a question, keywords, the statement of a problem",
    )
    min_hops: int = setting(1, "Smallest number of passages that a question connects", ge=1)
    max_hops: int = setting(3, "Largest number of passages that a question connects", ge=1)
    min_complexity: int = setting(2, "Lowest complexity that the LLM is asked for (1 to 5)", ge=1, le=5)
    max_artifacts_per_type: int = setting(2, "Items of each of the eight artifact kinds per document", gt=0)
    language: str | None = setting(None, "Language of questions and answers; null is that of each document")
    prompts: dict[ChatRole, str] = setting(
        {}, "Instructions in place of the built-in ones: text, or `file:PATH`; names like `$num_pairs` are filled in"
    )
    similarity_threshold: float = setting(
        0.9, "Questions of one document that are more similar than this count as one", ge=0, le=1
    )
    min_success: float = setting(
        0.98, "Smallest share of documents that must yield pairs", ge=0, le=1, affects_result=False
    )
    offline_method: OfflineMethod = setting("mixed", "How `offline` derives a query from a passage")
    seed: int = setting(42, "Seed of all random choices")

    @model_validator(mode="after")
    def _hops_are_ordered(self) -> Self:
        if self.min_hops > self.max_hops:
            raise ValueError(f"min_hops = {self.min_hops} is greater than max_hops = {self.max_hops}")
        return self

    @model_validator(mode="after")
    def _shares_are_positive(self) -> Self:
        for name in ("query_counts", "reasoning_counts", "question_styles"):
            shares = getattr(self, name).values()
            if min(shares, default=0) < 0 or not any(shares):
                raise ValueError(f"{name}: give whole numbers from 0, and at least one above")
        return self

    def count_pairs(self, words: int) -> int:
        """Return how many pairs the LLM is asked for about ``words`` words."""
        return max(self.num_pairs, round(words * self.num_pairs_per_1000_words / 1000))
