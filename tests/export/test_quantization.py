"""8-bit models of real weights, made by ONNX Runtime and NVIDIA ModelOpt themselves and run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from sentence_transformers import SentenceTransformer

from components.core.encoder.checkpoint import load_checkpoint
from components.core.errors import ActionNeeded, InputError
from components.core.runner import Source, execute
from components.core.serving.model_manifest import read_model_manifest
from components.export import formats, onnx_int8, quantization, sessions
from components.export.component import ExportConfig
from components.export.mixed_precision import convert_to_half
from components.export.onnx_graph import write_onnx
from components.export.onnx_int8 import quantize_weights
from components.export.probes import read_odd_texts
from components.export.quantization import TRANSLATIONS, choose_calibration_texts, quantize
from components.export.sessions import OnnxSession
from components.recipe.stages import by_name
from tests.exported import Exported

pytestmark = pytest.mark.slow

TEXTS = [f"Part {n} of the manual says how to fit valve {n} and test it." for n in range(0, 30, 3)]


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SHAPES", ((1, 8),))


def run_export(exported: Exported, directory: Path, **settings: Any) -> dict[str, Path]:
    stage = by_name("export")
    outputs = {name: directory / name for name in stage.outputs}
    inputs = {"checkpoint": Source(exported.checkpoint)}
    if exported.eval_data:
        inputs["eval_data"] = Source(exported.eval_data)
    config = ExportConfig(num_probes=24, calibration_texts=40, calibration_batch_size=8, **settings)
    execute(stage, config, inputs=inputs, outputs=outputs, uris=dict.fromkeys([*inputs, *outputs], "s3://b/x"))
    return outputs


def weight_types(model: Path) -> dict[int, int]:
    """Numbers of weights in the graph, by their type."""
    found: dict[int, int] = {}
    for tensor in onnx.load(model).graph.initializer:
        found[tensor.data_type] = found.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    return found


def lowest_cosine(session: OnnxSession, exported: Exported) -> float:
    encoder = load_checkpoint(exported.checkpoint)
    ids, mask = (tensor.numpy() for tensor in encoder.batch(encoder.tokenize(TEXTS, "passage")))
    expected = SentenceTransformer(str(exported.checkpoint), device="cpu").encode(TEXTS)
    return float((session.embed(ids, mask) * expected).sum(1).min())


def test_int8_of_onnx_runtime_keeps_real_weights_usable(minilm: Exported, tmp_path: Path) -> None:
    shutil.copyfile(minilm.model / "onnx/model.onnx", tmp_path / "model.onnx")
    quantize_weights(tmp_path)
    model = tmp_path / "model.onnx"
    # Six layers of 384: four products of 384 x 384, two of 384 x 1536.
    assert weight_types(model)[TensorProto.INT8] >= 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert model.stat().st_size < 0.7 * (minilm.model / "onnx/model.onnx").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert lowest_cosine(OnnxSession(model, 384), minilm) > 0.97


def test_int8_vectors_do_not_depend_on_the_texts_beside_them(minilm: Exported, tmp_path: Path) -> None:
    """With one scale for a batch, as ONNX Runtime's dynamic quantisation has it, the cosine falls below 0.99."""
    shutil.copyfile(minilm.model / "onnx/model.onnx", tmp_path / "model.onnx")
    quantize_weights(tmp_path)
    session, encoder = OnnxSession(tmp_path / "model.onnx", 384), load_checkpoint(minilm.checkpoint)
    texts = [*TEXTS, *read_odd_texts()[:20]]
    together, *alone = (
        session.embed(*(tensor.numpy() for tensor in encoder.batch(encoder.tokenize(some, "passage"))))
        for some in (texts, *([text] for text in texts))
    )
    assert float((together * np.concatenate(alone)).sum(1).min()) > 0.9999


def test_int8_stays_within_16_bits_of_cpus_without_vnni(minilm: Exported, tmp_path: Path) -> None:
    """Such a CPU adds two products of an unsigned and a signed byte in 16 bits, and cuts off what is larger."""
    shutil.copyfile(minilm.model / "onnx/model.onnx", tmp_path / "model.onnx")
    quantize_weights(tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("_bytes")]
    assert len(weights) == 36
    assert 2 * 255 * max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 2**15 - 1


def test_int8_of_a_small_model_passes_the_gate(
    minilm: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "write_onnx", written(minilm))
    model = run_export(minilm, tmp_path / "out", quant_cfg="int8")["exported_model"]
    manifest = read_model_manifest(model)
    assert manifest.precision == "int8"
    assert manifest.parity["repeat"] > 0.9999


def test_smoothquant_of_real_weights_fits_the_texts_that_calibrated_it(minilm: Exported, tmp_path: Path) -> None:
    encoder = load_checkpoint(minilm.checkpoint)
    quantize(encoder, "int8_sq", [("passage", text) for text in TEXTS], batch_size=4)
    model = write_onnx(encoder, tmp_path, opset=20, dimensions=True, translations=TRANSLATIONS)
    assert weight_types(model)[TensorProto.INT8] >= 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert lowest_cosine(OnnxSession(model, 384), minilm) > 0.97


def test_fp8_is_written_as_nodes_that_say_so(minilm: Exported, tmp_path: Path) -> None:
    encoder = load_checkpoint(minilm.checkpoint)
    quantize(encoder, "fp8", [("passage", text) for text in TEXTS], batch_size=4)
    convert_to_half(encoder.backbone, norms_in_fp32=True, patterns=[])
    model = write_onnx(encoder, tmp_path, opset=20, dimensions=True, translations=TRANSLATIONS)
    assert weight_types(model)[TensorProto.FLOAT8E4M3FN] >= 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert weight_types(model)[TensorProto.FLOAT16] > 10_000_000
    assert lowest_cosine(OnnxSession(model, 384), minilm) > 0.98


def written(exported: Exported) -> Callable[..., Path]:
    """The graph that was exported before: torch's exporter takes its time."""

    def write(_: Any, directory: Path, **__: Any) -> Path:
        return Path(shutil.copyfile(exported.model / "onnx/model.onnx", directory / "model.onnx"))

    return write


def test_int8_that_spoils_the_model_is_refused(
    minilm: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bits with one scale for a column are known to be too coarse."""
    monkeypatch.setattr(formats, "write_onnx", written(minilm))
    monkeypatch.setattr(onnx_int8, "_LARGEST_WEIGHT", 7)
    with pytest.raises(InputError, match=r"does not give the checkpoint's vectors.*int8 needs mean >= 0\.985"):
        run_export(minilm, tmp_path / "out", quant_cfg="int8")
    assert list((tmp_path / "out").iterdir()) == []


def test_calibration_takes_the_users_texts_but_not_those_of_the_proof(minilm: Exported) -> None:
    config = ExportConfig(quant_cfg="fp8", calibration_texts=40)
    asked = [f"how to fit valve {n}?" for n in range(20)]
    texts = choose_calibration_texts(config, minilm.eval_data, asked)
    assert {text for kind, text in texts if kind == "query"} == {f"how to fit valve {n}?" for n in range(20, 30)}
    passages = [text for kind, text in texts if kind == "passage"]
    assert sum("of the manual says" in text for text in passages) == 30
    assert len(passages) > 60
    with pytest.raises(InputError, match="calibrated on your own texts: give eval_data"):
        choose_calibration_texts(config, None, [])


def test_a_missing_modelopt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(quantization.importlib, "import_module", missing)
    with pytest.raises(ActionNeeded, match=r"needs NVIDIA ModelOpt .*pip install"):
        quantization.load_modelopt()


@torch.inference_mode()
def test_half_precision_keeps_its_islands(minilm: Exported) -> None:
    encoder = load_checkpoint(minilm.checkpoint)
    whole = encoder.encode(TEXTS, "passage")
    convert_to_half(encoder.backbone, norms_in_fp32=True, patterns=["encoder.layer.5.*"])
    types = {name: weight.dtype for name, weight in encoder.backbone.named_parameters()}
    wide = {name for name, dtype in types.items() if dtype == torch.float32}
    assert wide == {name for name in types if "LayerNorm" in name or name.startswith("encoder.layer.5.")}
    assert float((encoder.encode(TEXTS, "passage") * whole).sum(1).min()) > 0.9999
    with pytest.raises(InputError, match=r"override_layers_to_fp32: no module is called '/model/norm/'"):
        convert_to_half(encoder.backbone, norms_in_fp32=True, patterns=["/model/norm/"])
