"""The estimate of memory against what was measured, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DistilBertConfig

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.bidirectional import LlamaBidirectionalConfig
from components.core.errors import InputError
from components.finetune.component import FinetuneConfig
from components.finetune.model import spreads
from components.finetune.observe.memory import estimate

GPU = torch.device("cuda")


def base(directory: Path, **sizes: int) -> FinetuneConfig:
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    LlamaBidirectionalConfig(vocab_size=128256, num_key_value_heads=8, **shape | sizes).save_pretrained(directory)
    return FinetuneConfig(base_model=str(directory))


def with_memory(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    found = type("Properties", (), {"total_memory": gigabytes * 1e9})
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: found)


def test_the_estimate_is_what_was_measured(tmp_path: Path) -> None:
    """42.3 GB on an H200 with 16,384 tokens per pass, benchmarks/README.md."""
    config = base(tmp_path).model_copy(update={"packed_batch_tokens": 16384})
    assert estimate(config, torch.bfloat16).total == pytest.approx(42.3e9, rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "memory", "ranks", "given", "expected"),
    [
        ({}, 80, 1, {}, False),
        ({}, 80, 8, {}, False),
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, 80, 8, {}, True),
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, 80, 1, {}, InputError),
        (
            {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            80,
            8,
            {"parallelism": "ddp"},
            InputError,
        ),
        ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}, 80, 1, {"lora_rank": 8}, False),
        ({}, 80, 2, {"parallelism": "fsdp"}, True),
    ],
    ids=["1B", "1B on eight", "8B on eight", "8B on one", "8B whole", "8B with LoRA", "1B, asked for"],
)
def test_what_does_not_fit_is_spread_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: Any, memory: float, ranks: int, given: Any, expected: Any
) -> None:
    config = base(tmp_path, **sizes).model_copy(update=given)
    with_memory(monkeypatch, memory)
    if expected is InputError:
        with pytest.raises(InputError, match=r"training needs about \d+ GB on a GPU, 72 GB can be used"):
            spreads(config, ProcessGroup(0, ranks), GPU, torch.bfloat16)
    else:
        assert spreads(config, ProcessGroup(0, ranks), GPU, torch.bfloat16) is expected


def test_code_that_nobody_allowed_does_not_run_for_an_estimate(tmp_path: Path) -> None:
    """The estimate comes first: before the model is loaded, and refused for the same reason."""
    config = base(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PretrainedConfig as Own\n"
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(InputError, match="needs its own code: review it"):
        estimate(config, torch.bfloat16)
    allowed = {"trust_remote_code": True, "base_model_revision": "0" * 40, "remote_code_sha256": {"own.py": "0" * 64}}
    with pytest.raises(InputError, match="review the code, then allow this file"):
        estimate(config.model_copy(update=allowed), torch.bfloat16)
    assert not (tmp_path / "ran").exists()


def test_other_families_can_be_estimated(tmp_path: Path) -> None:
    """DistilBERT has no intermediate_size."""
    DistilBertConfig().save_pretrained(tmp_path)
    found = estimate(FinetuneConfig(base_model=str(tmp_path)), torch.float32)
    assert found.states == pytest.approx(16 * 66.4e6, rel=0.01)
