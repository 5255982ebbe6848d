"""Deploy bundles of models that need no weights: their vectors are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from components.core.encoder.config import EncoderConfig
from components.core.serving.bundle import Probe, write_probes
from components.core.serving.model_manifest import ModelManifest, ServedFile, TensorRTPlanInfo, compute_digest

DIMENSION = 16
PROBES = [Probe(kind, f"{kind} {number} about valves") for number in range(8) for kind in ("query", "passage")]


def plan_facts(**changes: Any) -> TensorRTPlanInfo:
    """Of a plan that an A100 built as export does by default, for texts of 512 tokens."""
    facts: dict[str, Any] = {
        "tensorrt": "10.13.3.9",
        "compute_capability": "8.0",
        "gpu": "NVIDIA A100-SXM4-80GB",
        "version_compatible": True,
        "hardware_compatibility": "none",
        "batch": (1, 16, 64),
        "length": (3, 128, 512),
    }
    return TensorRTPlanInfo(**facts | changes)


def write_bundle(
    directory: Path,
    seed: int,
    *,
    weights: int | None = None,
    encoder: EncoderConfig | None = None,
    files: tuple[str, ...] = ("onnx/model.onnx",),
    model_format: str = "onnx",
    plan: TensorRTPlanInfo | None = None,
) -> Path:
    """The bundle of model number ``seed``; the same ``weights`` under another seed is the same model exported again."""
    weights = seed if weights is None else weights
    directory.mkdir(parents=True)
    encoder = encoder or EncoderConfig(base_model="test/base", query_max_length=64, passage_max_length=64)
    encoder.write(directory)
    write_probes(directory, PROBES, _vectors(weights), _vectors(10_000 + weights))
    served = {name: ServedFile(sha256=f"{seed:064x}", bytes=seed) for name in files}
    agreed = {name: value for name, value in encoder if name in ModelManifest.model_fields}
    manifest = ModelManifest(
        files=served,
        digest=compute_digest(served),
        model_format=model_format,
        precision="fp32",
        opset=20,
        dimension=DIMENSION,
        checkpoint_digest=f"{weights:064x}",
        parity={},
        plan=plan,
        onnxruntime="1.22",
        torch="2.9",
        **agreed,
    )
    manifest.write(directory)
    return directory


def _vectors(seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(len(PROBES), DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
