"""What is said of a training before, while and after it runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, PreTrainedModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.cost import flops_per_token, peak_flops
from tests.finetune.training import finetune, log, records, settings, texts, write_data

SIZES = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture(params=["llama", "bert"])
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "bert":
        return BertModel(BertConfig(**SIZES)).eval()
    return LlamaBidirectionalModel(LlamaBidirectionalConfig(**SIZES, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("length", [8, 200])
@torch.no_grad()
def test_operations_are_those_that_torch_counts(backbone: PreTrainedModel, length: int) -> None:
    """BERT's pooler is counted by torch and not used here."""
    ids = torch.ones(1, length, dtype=torch.int64)
    backbone.pooler = None
    backbone.set_attn_implementation("eager")  # of the other ones on a CPU torch counts nothing
    with FlopCounterMode(display=False) as counter:
        backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert flops_per_token(backbone, [length]) * length == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312)],
)
def test_the_peak_of_a_gpu_is_its_data_sheets(monkeypatch: pytest.MonkeyPatch, name: str, teraflops: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = peak_flops(torch.device("cuda"))
    assert peak is not None and peak[0] == teraflops * 1e12
    assert peak_flops(torch.device("cpu")) is None


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_the_whole_course_and_the_plan_comes_first(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of a run that continues: its second attempt has the first one's steps, too."""
    caplog.set_level(logging.INFO)
    data = write_data(tmp_path / "data", records(32), texts(32))
    config = settings(tiny, global_batch_size=128, num_epochs=2, checkpoint_uri=str(tmp_path / "states"))
    config = config.model_copy(update={"tensorboard_uri": str(tmp_path / "runs"), "early_stopping_patience": 2})
    finetune(tmp_path / "first", data, config)
    said = caplog.text
    assert "32 examples, 2 epochs, 4 steps of 16 queries, 5 passages each, float32 on 1 x cpu" in said
    assert "global_batch_size 128 became 16" in said
    assert "only 4 steps" in said
    assert "early_stopping_patience has no effect" in said
    assert said.index("million tokens") < said.index("training: 4 steps in")
    finetune(tmp_path / "second", data, config)
    expected = [(step["step"], pytest.approx(step["loss"])) for step in log(tmp_path / "first")]
    runs = sorted((tmp_path / "runs").iterdir())
    assert runs
    for run in runs:
        assert scalars(run, "loss") == expected


def test_a_tracker_that_cannot_be_reached_does_not_stop_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    data = write_data(tmp_path / "data", records(16), texts(16))
    outcome = finetune(tmp_path / "work", data, settings(tiny, num_epochs=1))
    assert outcome.metrics["steps"] == 1
    assert "training goes on" in caplog.text
    assert json.loads((tmp_path / "work" / "checkpoint" / "training.jsonl").read_text())["step"] == 1
