"""Settings of the stages that encode many texts; imports nothing heavy."""

from __future__ import annotations

from components.core.settings import Settings, setting


class EmbeddingSettings(Settings):
    """Settings of ``components.core.retrieval.encode_texts``."""

    encode_batch_tokens: int = setting(16384, "Tokens encoded at once, padding included", gt=0)
    num_processes: int | None = setting(
        None, "Processes that encode together, one per GPU; null starts one for each visible GPU, one on a CPU", gt=0
    )
    embedding_cache_uri: str | None = setting(
        None,
        "Where vectors are kept, so that no run encodes a text again: a directory that outlives the pod, "
        "`s3://bucket/prefix` or `gs://bucket/prefix`; null keeps none (on one machine: "
        "WORK/embedding_cache)",
        form=True,
        in_work="embedding_cache",
        min_length=1,
    )
