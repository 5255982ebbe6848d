"""Building and running a TensorRT plan, against a stand-in with the signatures of TensorRT 10.13 and 11.4."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from components.core.encoder.checkpoint import load_checkpoint
from components.core.errors import ActionNeeded, InputError
from components.export import tensorrt_plan
from components.export.component import ExportConfig
from components.export.formats import require_packages
from components.export.tensorrt_plan import PLAN_FILE, PlanSession, build_plan, choose_ranges, load_tensorrt
from tests.export.tensorrt_standin import tensorrt
from tests.exported import Exported

pytestmark = pytest.mark.slow

TEXTS = ["a", "how to fit valve 7?", "one two three four five six seven eight nine ten"] * 3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on an H100; memory is that of the CPU."""
    monkeypatch.setattr(tensorrt_plan, "_DEVICE", "cpu")
    for name, answer in (("is_available", True), ("get_device_capability", (9, 0)), ("get_device_name", "NVIDIA H100")):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)


@pytest.fixture(params=["10.13.3.9", "11.4.0.106"])
def trt(request: pytest.FixtureRequest, gpu: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    standin = tensorrt(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", standin)
    return standin


def built(trt: Any, exported: Exported, folder: Path, **settings: Any) -> tuple[Any, PlanSession]:
    config = ExportConfig(export_to_trt=True, **settings)
    facts = build_plan(trt, exported.model / "onnx/model.onnx", folder, config, longest=64)
    return facts, PlanSession(trt, folder / PLAN_FILE, facts, 384)


def test_a_plan_gives_the_checkpoints_vectors(trt: Any, minilm: Exported, tmp_path: Path) -> None:
    """More texts than the largest batch, shorter ones than the shortest of the profile, shortened vectors."""
    facts, session = built(trt, minilm, tmp_path / "tensorrt", trt_max_batch=4, trt_opt_batch=2, trt_min_seq_len=8)
    assert (facts.batch, facts.length) == ((1, 2, 4), (8, 64, 64))
    encoder = load_checkpoint(minilm.checkpoint, device=torch.device("cpu"))
    ids, mask = (tensor.numpy() for tensor in encoder.batch(encoder.tokenize(TEXTS, "query")))
    expected = SentenceTransformer(str(minilm.checkpoint), device="cpu")
    np.testing.assert_allclose(session.embed(ids, mask), expected.encode(TEXTS), atol=2e-6)
    alone = session.embed(ids[:1, :3], mask[:1, :3])
    np.testing.assert_allclose(alone, expected.encode(TEXTS[:1]), atol=2e-6)
    assert session.embed(ids, mask, dimension=32).shape == (len(TEXTS), 32)


def test_settings_reach_the_builder(trt: Any, minilm: Exported, tmp_path: Path) -> None:
    facts, _ = built(
        trt, minilm, tmp_path / "tensorrt", trt_hardware_compatibility="ampere_plus", profiling_verbosity="detailed"
    )
    (config,) = trt.built
    assert config.set_flags == ["VERSION_COMPATIBLE"]
    assert config.hardware_compatibility_level is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    assert config.profiles[0].shapes == {
        "input_ids": [(1, 3), (16, 64), (64, 64)],
        "attention_mask": [(1, 3), (16, 64), (64, 64)],
        "dimensions": [(1,), (16,), (64,)],
    }
    assert (facts.tensorrt, facts.compute_capability, facts.gpu) == (trt.__version__, "9.0", "NVIDIA H100")


def test_without_version_compatibility_no_flag_is_set(trt: Any, minilm: Exported, tmp_path: Path) -> None:
    built(trt, minilm, tmp_path / "tensorrt", trt_version_compatible=False)
    assert trt.built[0].set_flags == []


def test_progress_is_shown(
    trt: Any, minilm: Exported, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_plan, "LINE_EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="components.export"):
        built(trt, minilm, tmp_path / "tensorrt")
    assert "TensorRT: Building Engine, step 2 of 3" in caplog.text


def test_a_graph_that_tensorrt_cannot_read_is_one_line(trt: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"TensorRT 1\d\.\d+\.[\d.]+ cannot read the graph"):
        build_plan(trt, tmp_path / "model.onnx", tmp_path / "tensorrt", ExportConfig(), longest=64)
    assert not (tmp_path / "tensorrt").exists()


def test_a_plan_shorter_than_the_training_is_refused() -> None:
    """The recipe's own default: 256 tokens for a model trained with 512."""
    with pytest.raises(InputError, match="trt_max_seq_len = 256: the model was trained with texts of 512"):
        choose_ranges(ExportConfig(trt_max_seq_len=256), longest=512)
    assert choose_ranges(ExportConfig(), longest=512)[1] == (3, 128, 512)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trt_opt_batch": 128}, "trt_min_batch <= trt_opt_batch <= trt_max_batch"),
        ({"trt_max_seq_len": 64}, "trt_opt_seq_len <= trt_max_seq_len"),
        ({"quant_cfg": "int8", "export_to_trt": True}, "for a GPU take int8_sq or fp8"),
        ({"enabled": False, "export_to_trt": True}, "enabled=false writes no ONNX"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(**settings)


def test_a_missing_package_or_gpu_is_said_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ActionNeeded, match=r"export_to_trt needs TensorRT .*pip install"):
        require_packages(ExportConfig(export_to_trt=True))
    require_packages(ExportConfig())
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt("11.4.0.106"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ActionNeeded, match="on the GPU that will serve, and there is none"):
        load_tensorrt()
