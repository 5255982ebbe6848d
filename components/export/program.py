"""The checkpoint in the form that is served; published only when its vectors are the checkpoint's."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.core.artifacts import MANIFEST
from components.core.encoder.checkpoint import default_device, load_base, load_checkpoint
from components.core.encoder.config import ENCODER_FILE
from components.core.encoder.model import Encoder
from components.core.serving.bundle import BUNDLE_FILES, Probe, write_probes
from components.core.serving.model_manifest import CHECKPOINT_FOLDER, ModelManifest, compute_digest, hash_files
from components.core.serving.vector_limits import compare_vectors
from components.export.component import ExportConfig
from components.export.formats import References, require_packages, write_formats
from components.export.probes import choose_probes

_log = logging.getLogger(__name__)
Figures = dict[str, float | int | bool | str]


def run(
    config: ExportConfig, *, checkpoint: Path, eval_data: Path | None, exported_model: Path, deploy_bundle: Path
) -> Figures:
    """Write the model with its proofs, and the bundle that travels without weights.

    Raises InputError when the checkpoint or its base model cannot be loaded, and when the exported model does not
    give the checkpoint's vectors; ActionNeeded when what a setting asks for is not installed.
    """
    require_packages(config)
    encoder = load_checkpoint(checkpoint, device=default_device(), dtype=torch.float32)
    probes = choose_probes(encoder, config, eval_data)
    tuned = _vectors(encoder, probes, config)
    base = _vectors(load_base(encoder.config, device=default_device(), dtype=torch.float32), probes, config)
    noise = compare_vectors(_vectors(load_checkpoint(checkpoint, dtype=torch.bfloat16), probes, config), tuned)
    exported_model.mkdir(parents=True)
    if config.enabled:
        facts, figures = write_formats(config, encoder, References(probes, tuned, noise), eval_data, exported_model)
    else:
        facts, figures = _as_checkpoint(checkpoint, exported_model)
    facts["noise_floor"] = {**noise.to_figures(), "deviation": round(noise.deviation, 7)}
    encoder.config.write(exported_model)
    write_probes(exported_model, probes, tuned, base)
    manifest = _manifest(encoder, checkpoint, exported_model, facts)
    manifest.write(exported_model)
    deploy_bundle.mkdir(parents=True)
    for name in BUNDLE_FILES:
        shutil.copyfile(exported_model / name, deploy_bundle / name)
    _log.info("exported %s, %s, digest %s", manifest.model_format, manifest.precision, manifest.digest[:12])
    return {**figures, "probes": len(probes), "noise_floor_mean_cosine": noise.mean, "digest": manifest.digest}


def _as_checkpoint(checkpoint: Path, exported_model: Path) -> tuple[dict[str, Any], Figures]:
    """A copy of the checkpoint, for a server that takes one and computes in half precision."""
    _log.info("enabled=false: no ONNX is written, the checkpoint itself is served")
    folder = exported_model / CHECKPOINT_FOLDER
    shutil.copytree(checkpoint, folder, ignore=lambda where, _: [MANIFEST] if Path(where) == checkpoint else [])
    facts: dict[str, Any] = {
        "model_format": "checkpoint",
        "precision": "bf16",
        "opset": None,
        "onnxruntime": None,
        "parity": {},
    }
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return facts, {"checkpoint_megabytes": round(size / 1e6, 1)}


def _vectors(encoder: Encoder, probes: list[Probe], config: ExportConfig) -> np.ndarray:
    """float32 [probes, dimension] by PyTorch."""
    vectors = np.empty((len(probes), encoder.dimension), dtype=np.float32)
    for kind in ("query", "passage"):
        rows = [row for row, probe in enumerate(probes) if probe.kind == kind]
        texts = [probes[row].text for row in rows]
        what = f"encoding {kind} probes"
        vectors[rows] = encoder.encode(texts, kind, batch_tokens=config.encode_batch_tokens, label=what)
    return vectors


def _manifest(encoder: Encoder, checkpoint: Path, exported_model: Path, facts: dict[str, Any]) -> ModelManifest:
    files = hash_files(exported_model, _names(exported_model))
    # Without the manifest, in which the run's settings stand: equal weights have equal digests.
    trained = hash_files(checkpoint, [name for name in _names(checkpoint) if name != MANIFEST])
    agreed = {name: value for name, value in encoder.config if name in ModelManifest.model_fields}
    return ModelManifest(
        files=files,
        digest=compute_digest(files),
        dimension=encoder.dimension,
        checkpoint_digest=compute_digest(trained),
        torch=torch.__version__,
        **facts,
        **agreed,
    )


def _names(directory: Path) -> list[str]:
    """Files of ``directory`` by their relative paths; proofs of an exported model are not served."""
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return [name for name in names if name == ENCODER_FILE or name not in BUNDLE_FILES]
