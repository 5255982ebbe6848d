"""Settings of sdg: how documents are cut into passages, and which documents are asked about together."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from components.core.settings import Settings, setting


class ChunkingSettings(Settings):
    """How long a passage is."""

    sentences_per_chunk: int = setting(5, "Sentences in a passage", gt=0)
    chunk_max_words: int = setting(250, "Longest passage in words; longer ones are cut at a word", gt=0)
    chunk_overlap_sentences: int = setting(0, "Sentences of the previous passage that a passage repeats", ge=0)
    chunk_by_tokens: bool = setting(
        False,
        "Also keep every passage within `passage_max_length` tokens, counted with the base model's tokenizer",
    )

    @model_validator(mode="after")
    def _overlap_is_less_than_a_passage(self) -> Self:
        if self.chunk_overlap_sentences >= self.sentences_per_chunk:
            raise ValueError("chunk_overlap_sentences must be less than sentences_per_chunk")
        return self


class BundleSettings(Settings):
    """Which documents are asked about together."""

    multi_doc: bool = setting(False, "Ask about bundles of documents instead of one document at a time")
    bundle_size: int = setting(2, "Documents in a bundle, in order of their paths", gt=0)
    max_docs_per_bundle: int = setting(3, "Largest number of documents in a bundle; larger bundles are an error", gt=0)
    multi_doc_manifest: str | None = setting(
        None, "JSON or YAML file in the corpus that lists bundles: `[[a.txt, b.txt], ...]`; the rest by `bundle_size`"
    )

    @model_validator(mode="after")
    def _bundles_are_allowed(self) -> Self:
        if self.multi_doc and self.bundle_size > self.max_docs_per_bundle:
            raise ValueError(f"bundle_size = {self.bundle_size} is greater than max_docs_per_bundle")
        return self
