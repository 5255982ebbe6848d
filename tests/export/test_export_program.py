"""The exported model against sentence-transformers, transformers and onnx themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel

from components.core.errors import InputError
from components.core.runner import Source, execute
from components.core.serving.bundle import read_bundle
from components.core.serving.model_manifest import check_files
from components.export import formats
from components.export.component import ExportConfig
from components.recipe.stages import by_name
from tests.exported import Exported

pytestmark = pytest.mark.slow

TEXTS = ["a", "How do I open a file for reading?", "Größe 数据 🚀", "one " * 40, "def f(x): return x"]


def onnx_vectors(exported: Exported, texts: list[str], dimensions: list[int] | None = None) -> np.ndarray:
    """By onnxruntime and tokenizers alone, from nothing but the exported files."""
    tokenizer = Tokenizer.from_file(str(exported.model / "onnx/tokenizer/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([row.ids for row in encoded], dtype=np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], dtype=np.int64),
    }
    session = onnxruntime.InferenceSession(exported.model / "onnx/model.onnx")
    if exported.config.use_dimension_arg:
        inputs["dimensions"] = np.array(dimensions or [384] * len(texts), dtype=np.int64)
    return session.run(["embeddings"], inputs)[0]


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:3] * 9], ids=["mixed", "one", "eighteen"])
def test_gives_the_vectors_of_sentence_transformers(minilm: Exported, texts: list[str]) -> None:
    expected = SentenceTransformer(str(minilm.checkpoint), device="cpu").encode(texts)
    np.testing.assert_allclose(onnx_vectors(minilm, texts), expected, atol=2e-6)


def test_reference_vectors_are_those_of_sentence_transformers(minilm: Exported) -> None:
    vectors = load_file(minilm.bundle / "reference_vectors.safetensors")
    probes = [json.loads(line) for line in (minilm.bundle / "probes.jsonl").read_text().splitlines()]
    model = SentenceTransformer(str(minilm.checkpoint), device="cpu")
    for kind, longest in (("query", 32), ("passage", 64)):
        rows = [row for row, probe in enumerate(probes) if probe["kind"] == kind]
        model.max_seq_length = longest
        expected = model.encode([probes[row]["text"] for row in rows])
        np.testing.assert_allclose(vectors["tuned"][rows], expected, atol=2e-6)
        assert cosines(vectors["base"][rows], expected).mean() < 0.999


def test_fp16_llama_gives_the_checkpoints_vectors(llama: Exported) -> None:
    texts = ["query: valve", "query: how to fit the second valve of the pump"]
    found = onnx_vectors(llama, texts)
    tokenizer = Tokenizer.from_file(str(llama.checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = AutoModel.from_pretrained(llama.checkpoint, dtype=torch.float32)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        expected = torch.nn.functional.normalize(hidden.mean(1)).numpy()
        assert cosines(vector[None], expected)[0] > 0.999


def test_llama_sees_what_comes_after(llama: Exported) -> None:
    """Under causal attention the first token's share of the vector could not depend on the last one."""
    ids = np.array([[101, 2000, 2001, 102], [101, 2000, 2001, 103]], dtype=np.int64)
    model = AutoModel.from_pretrained(llama.checkpoint, dtype=torch.float32)
    with torch.no_grad():
        tokens = torch.from_numpy(ids)
        hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    assert not torch.allclose(hidden[0, 0], hidden[1, 0], atol=1e-4)
    expected = torch.nn.functional.normalize(hidden.mean(1)).numpy()
    session = onnxruntime.InferenceSession(llama.model / "onnx/model.onnx")
    found = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    assert cosines(found, expected).min() > 0.999


@pytest.mark.parametrize("which", ["minilm", "llama"])
def test_the_graph_does_not_look_for_nan(which: str, request: pytest.FixtureRequest) -> None:
    """The exporter's own attention does, in every layer: a tenth of a CPU's time."""
    exported: Exported = request.getfixturevalue(which)
    model = onnx.load(exported.model / "onnx/model.onnx", load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert sum(node.op_type == "Softmax" for node in nodes) == (6 if which == "minilm" else 2)
    assert "IsNaN" not in {node.op_type for node in nodes}


@pytest.mark.parametrize("which", ["minilm", "llama"])
def test_padding_changes_no_vector_and_makes_no_nan(which: str, request: pytest.FixtureRequest) -> None:
    """In fp16 (llama), too, where the mask is added to the scores; and a row of nothing but padding spoils no other."""
    exported: Exported = request.getfixturevalue(which)
    session = onnxruntime.InferenceSession(exported.model / "onnx/model.onnx")

    def vectors(rows: list[list[int]], length: int) -> np.ndarray:
        ids = np.array([row + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if exported.config.use_dimension_arg:
            inputs["dimensions"] = np.full(len(rows), 384, dtype=np.int64)
        return session.run(["embeddings"], inputs)[0]

    rows = [[101, 102], [101, *range(2000, 2060), 102], [101, 2000, 2001, 102]]
    padded = vectors([*rows, []], 64)
    assert np.isfinite(padded).all()
    alone = np.concatenate([vectors([row], len(row)) for row in rows])
    assert cosines(padded[:3], alone).min() > (0.99999 if which == "minilm" else 0.9999)


@pytest.mark.parametrize("which", ["minilm", "llama"])
def test_graph_is_valid_and_dynamic(which: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(which)
    onnx.checker.check_model(str(exported.model / "onnx/model.onnx"), full_check=True)
    graph = onnx.load(exported.model / "onnx/model.onnx", load_external_data=False)
    assert graph.opset_import[0].version == 20
    dimension = 384 if which == "minilm" else 64
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    axes = ["batch", "length"]
    shortened = {"dimensions": ["batch"], "embeddings": ["batch", "dimension"]}
    last = shortened if exported.config.use_dimension_arg else {"embeddings": ["batch", dimension]}
    assert shapes == {"input_ids": axes, "attention_mask": axes, **last}
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.graph.input, *graph.graph.output)}
    integer, single = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert kinds.pop("embeddings") == single
    assert set(kinds.values()) == {integer}


def test_shortened_vectors_are_those_of_sentence_transformers(minilm: Exported) -> None:
    """Every text of a batch may want another length."""
    model = SentenceTransformer(str(minilm.checkpoint), device="cpu", truncate_dim=64)
    found = onnx_vectors(minilm, TEXTS[:3], [64, 384, 32])
    np.testing.assert_allclose(found[0, :64], model.encode(TEXTS[0], normalize_embeddings=True), atol=2e-6)
    np.testing.assert_allclose(found[1], onnx_vectors(minilm, TEXTS[:3])[1], atol=2e-6)
    assert found[0, 64:].tolist() == [0.0] * 320
    assert onnx_vectors(minilm, TEXTS[:2], [64, 64]).shape == (2, 64)


def test_large_weights_lie_in_one_file_of_half_the_size(llama: Exported) -> None:
    files = sorted(path.name for path in (llama.model / "onnx").iterdir())
    assert files == ["model.onnx", "model.onnx.data", "tokenizer"]
    weights = load_tensors(llama.checkpoint / "model.safetensors")
    expected = 2 * sum(tensor.numel() for tensor in weights.values())
    assert (llama.model / "onnx/model.onnx.data").stat().st_size == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("which", ["minilm", "llama"])
def test_manifest_describes_what_is_served(which: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(which)
    manifest = json.loads((exported.model / "model-manifest.json").read_text())
    served = [path for path in (exported.model / "onnx").rglob("*") if path.is_file()]
    names = ["encoder.json", *(str(path.relative_to(exported.model)) for path in served)]
    assert sorted(manifest["files"]) == sorted(names)
    hashes = {name: hashlib.sha256((exported.model / name).read_bytes()).hexdigest() for name in names}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == hashes
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    assert manifest["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert manifest["precision"] == exported.config.export_dtype
    assert manifest["query_prefix"] == ("" if which == "minilm" else "query: ")
    for path in exported.bundle.iterdir():
        assert path.read_bytes() == (exported.model / path.name).read_bytes()
    assert exported.metrics["parity_min_cosine"] > 0.99


def test_refuses_a_graph_that_is_not_the_checkpoint(
    minilm: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights change a little between checkpoint and ONNX, as a faulty conversion would change them."""

    def faulty(_: Any, directory: Path, **__: Any) -> Path:
        graph = onnx.load(minilm.model / "onnx/model.onnx")
        weights = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weights.raw_data, dtype=np.float32)
        weights.raw_data = (values + 0.02 * np.random.default_rng(0).normal(size=values.shape)).astype("f4").tobytes()
        onnx.save(graph, directory / "model.onnx")
        return directory / "model.onnx"

    monkeypatch.setattr(formats, "write_onnx", faulty)
    stage = by_name("export")
    outputs = {name: tmp_path / name for name in stage.outputs}
    with pytest.raises(InputError, match=r"not give the checkpoint's vectors: mean 0\.\d+.* min 0\.\d+.*fp32 needs"):
        source = Source(minilm.checkpoint)
        execute(stage, ExportConfig(num_probes=8), inputs={"checkpoint": source}, outputs=outputs, uris={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]), "cannot be"),
        (lambda d: (d / "encoder.json").unlink(), "has no encoder.json"),
        (lambda d: (d / "config.json").unlink(), "is no checkpoint"),
        (lambda d: _edit(d / "encoder.json", base_model="/no/such/model", base_model_sha256=None), "/no/such/model"),
    ],
    ids=["torn weights", "no encoder.json", "no config.json", "no base model"],
)
def test_refuses_a_damaged_checkpoint(llama: Exported, tmp_path: Path, damage: Any, message: str) -> None:
    shutil.copytree(llama.checkpoint, tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    stage = by_name("export")
    outputs = {name: tmp_path / "out" / name for name in stage.outputs}
    with pytest.raises(InputError, match=message):
        source = Source(tmp_path / "checkpoint")
        execute(stage, llama.config, inputs={"checkpoint": source}, outputs=outputs, uris={})
    assert list((tmp_path / "out").iterdir()) == []


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_without_onnx_the_checkpoint_itself_is_published_with_its_proofs(minilm: Exported, tmp_path: Path) -> None:
    stage = by_name("export")
    outputs = {name: tmp_path / name for name in stage.outputs}
    config = ExportConfig(enabled=False, num_probes=8)
    execute(
        stage,
        config,
        inputs={"checkpoint": Source(minilm.checkpoint)},
        outputs=outputs,
        uris=dict.fromkeys(("checkpoint", *outputs), "s3://b/x"),
    )
    served = SentenceTransformer(str(outputs["exported_model"] / "checkpoint"), device="cpu").encode(TEXTS[:2])
    np.testing.assert_allclose(served, SentenceTransformer(str(minilm.checkpoint), device="cpu").encode(TEXTS[:2]))
    bundle = read_bundle(outputs["deploy_bundle"])
    check_files(outputs["exported_model"], bundle.manifest)
    trained = {f"checkpoint/{path.relative_to(minilm.checkpoint)}" for path in minilm.checkpoint.rglob("*.*")}
    assert set(bundle.manifest.files) == {"encoder.json", *trained}
    assert (bundle.manifest.model_format, bundle.manifest.checkpoint_digest) == (
        "checkpoint",
        read_bundle(minilm.bundle).manifest.checkpoint_digest,
    )
    assert not (outputs["exported_model"] / "onnx").exists()
