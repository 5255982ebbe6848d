"""LoRA against its formula, and the merged checkpoint as a model like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from components.core.encoder.checkpoint import load_base, load_checkpoint
from components.finetune.lora import add_lora, merge_lora
from tests.finetune.test_resume import Stopped, stop_at_step, weights
from tests.finetune.training import finetune, log, records, settings, texts, write_data

pytestmark = pytest.mark.slow

RANK = 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", records(12), texts(12))


def test_the_additions_are_what_the_formula_says(tiny: Path) -> None:
    """W + alpha / rank * B A for every linear layer; at first B is 0."""
    encoder = load_base(settings(tiny).encoder(), dtype=torch.float32)
    before = {name: weights.clone() for name, weights in encoder.backbone.state_dict().items()}
    passages = list(texts(12).values())
    expected = encoder.encode(passages, "passage")
    add_lora(encoder, rank=RANK, alpha=6.0, seed=1)
    np.testing.assert_allclose(encoder.encode(passages, "passage"), expected, atol=1e-6)
    trained = {name: weights for name, weights in encoder.backbone.named_parameters() if weights.requires_grad}
    torch.manual_seed(5)
    with torch.no_grad():
        for additions in trained.values():
            additions.normal_(std=0.1)
    adapted = encoder.encode(passages, "passage")
    merge_lora(encoder)
    np.testing.assert_allclose(encoder.encode(passages, "passage"), adapted, atol=1e-5)
    assert not np.allclose(adapted, expected, atol=1e-2)
    changed = 0
    for name, merged in encoder.backbone.state_dict().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.default.weight" in trained:
            b, a = (trained[f"{stem}.lora_{part}.default.weight"] for part in "BA")
            torch.testing.assert_close(merged, before[name] + 6.0 / RANK * b @ a)
            changed += 1
        else:
            assert torch.equal(merged, before[name])
    assert changed == 2 * 7


def test_training_learns_and_saves_a_plain_model(tiny: Path, data: Path, tmp_path: Path) -> None:
    finetune(tmp_path, data, settings(tiny, lora_rank=RANK, num_epochs=8, learning_rate=1e-2, global_batch_size=12))
    steps = log(tmp_path)
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    base, tuned = (load_file(place / "model.safetensors") for place in (tiny, tmp_path / "checkpoint"))
    assert set(base) == set(tuned)
    different = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert different and all("_proj" in name for name in different)
    assert all(torch.linalg.matrix_rank(tuned[name] - base[name], rtol=1e-3) <= RANK for name in different)
    assert not list((tmp_path / "checkpoint").glob("adapter*"))
    AutoModel.from_pretrained(tmp_path / "checkpoint")
    assert np.isfinite(load_checkpoint(tmp_path / "checkpoint").encode(["a text"], "query")).all()


def test_a_stopped_run_continues(tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tiny, lora_rank=RANK, global_batch_size=4)
    finetune(tmp_path / "whole", data, config)
    kept = config.model_copy(update={"checkpoint_uri": str(tmp_path / "states"), "checkpoint_every_steps": 2})
    with monkeypatch.context() as patch:
        stop_at_step(patch, 6, Stopped())
        with pytest.raises(Stopped):
            finetune(tmp_path / "again", data, kept)
    torch.manual_seed(123)
    assert finetune(tmp_path / "again", data, kept).metrics["resumed_at_step"] == 4
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
