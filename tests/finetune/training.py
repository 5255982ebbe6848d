"""Small training sets and a small base model, and finetune as the runner starts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.core.runner import Outcome, Source, execute
from components.finetune.component import STAGE, FinetuneConfig

TRAINING_FILE = "train_mined.automodel_unrolled.json"
PARTS = ("valve", "pump", "filter", "motor", "sensor", "bearing")


def write_base(directory: Path, small: EncoderConfig) -> Path:
    """A bidirectional Llama of 2 layers, random, with the vocabulary of ``small``."""
    torch.manual_seed(0)
    tokenizer = load_base(small).tokenizer
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    architecture = LlamaBidirectionalConfig(
        vocab_size=len(tokenizer), num_key_value_heads=1, initializer_range=0.2, **sizes
    )
    save_checkpoint(Encoder(LlamaBidirectionalModel(architecture), tokenizer, EncoderConfig()), directory)
    return directory


def records(count: int, negatives: int = 4) -> list[dict[str, Any]]:
    """Each question's negatives are the passages of the next questions, so that passages repeat in a batch."""
    return [
        {
            "question": f"How do I fit {PARTS[n % 6]} {n}?",
            "pos_doc": [{"id": f"d{n}"}],
            "neg_doc": [{"id": f"d{(n + 1 + k) % max(count, negatives + 1)}"} for k in range(negatives)],
        }
        for n in range(count)
    ]


def texts(count: int) -> dict[str, str]:
    """As many passages, and the few more that the negatives of a very small set need."""
    return {
        f"d{n}": f"To fit {PARTS[n % 6]} {n}, loosen screw {n + 3} and press it down. " * (1 + n % 3)
        for n in range(max(count, 12))
    }


def write_data(directory: Path, data: Any, passages: dict[str, str]) -> Path:
    """Training data in Automodel's format."""
    (directory / "corpus").mkdir(parents=True)
    content = {"corpus": {"path": "./corpus/"}, "data": data}
    (directory / TRAINING_FILE).write_text(json.dumps(content), encoding="utf-8")
    table = pa.table({"id": list(passages), "text": list(passages.values())})
    pq.write_table(table, directory / "corpus" / "train.parquet")
    return directory


def settings(base: Path | str, **given: Any) -> FinetuneConfig:
    """Short texts, and a rate at which a few steps show."""
    short = {"query_max_length": 16, "passage_max_length": 32, "learning_rate": 1e-3, "temperature": 0.1}
    return FinetuneConfig(**{"base_model": str(base), **short, **given})


def finetune(work: Path, data: Path, config: FinetuneConfig) -> Outcome:
    """Run the stage; the checkpoint is published at ``work/checkpoint``."""
    return execute(
        STAGE,
        config,
        inputs={"training_data": Source(data)},
        outputs={name: work / name for name in STAGE.outputs},
        uris={},
    )


def log(work: Path) -> list[dict[str, Any]]:
    """The lines of ``training.jsonl``."""
    lines = (work / "checkpoint" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
