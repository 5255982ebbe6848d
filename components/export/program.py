"""The checkpoint as ONNX; published only when its vectors are the checkpoint's."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from components.core.artifacts import MANIFEST
from components.core.bundle import BUNDLE_FILES, Probe, write_probes
from components.core.encoder.checkpoint import default_device, load_base, load_checkpoint
from components.core.encoder.config import ENCODER_FILE
from components.core.encoder.model import Encoder
from components.core.model_manifest import ModelManifest, digest_of, hash_files
from components.export.component import ExportConfig
from components.export.onnx_graph import write_onnx
from components.export.parity import latency, measure, open_session
from components.export.probes import choose_probes

ONNX_FOLDER = "onnx"
TOKENIZER_FOLDER = "tokenizer"
_log = logging.getLogger(__name__)


def run(
    config: ExportConfig, *, checkpoint: Path, eval_data: Path | None, exported_model: Path, deploy_bundle: Path
) -> dict[str, float | int | bool | str]:
    """Write the ONNX model with its proofs, and the bundle that travels without weights.

    Raises InputError when the checkpoint or its base model cannot be loaded, and when the exported model does not
    give the checkpoint's vectors.
    """
    encoder = load_checkpoint(checkpoint, device=default_device(), dtype=torch.float32)
    probes = choose_probes(encoder, config, eval_data)
    tuned = _vectors(encoder, probes, config.encode_batch_tokens)
    base = _vectors(
        load_base(encoder.config, device=default_device(), dtype=torch.float32), probes, config.encode_batch_tokens
    )
    folder = exported_model / ONNX_FOLDER
    folder.mkdir(parents=True)
    model = write_onnx(encoder.cpu(), folder, opset=config.opset, precision=config.export_dtype)
    session = open_session(model)
    parity = measure(session, encoder, probes, tuned, config)
    parity.require()
    encoder.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    encoder.config.write(exported_model)
    write_probes(exported_model, probes, tuned, base)
    manifest = _manifest(config, encoder, checkpoint, exported_model, parity.figures())
    manifest.write(exported_model)
    deploy_bundle.mkdir(parents=True)
    for name in BUNDLE_FILES:
        shutil.copyfile(exported_model / name, deploy_bundle / name)
    _log.info("exported %s, digest %s", config.export_dtype, manifest.digest[:12])
    return {
        "parity_mean_cosine": parity.closeness.mean,
        "parity_min_cosine": parity.closeness.minimum,
        "onnx_megabytes": round(sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6, 1),
        **latency(session, encoder),
        "probes": len(probes),
        "digest": manifest.digest,
    }


def _vectors(encoder: Encoder, probes: list[Probe], batch_tokens: int) -> np.ndarray:
    """float32 [probes, dimension] by PyTorch."""
    vectors = np.empty((len(probes), encoder.dimension), dtype=np.float32)
    for kind in ("query", "passage"):
        rows = [row for row, probe in enumerate(probes) if probe.kind == kind]
        texts = [probes[row].text for row in rows]
        what = f"encoding {kind} probes"
        vectors[rows] = encoder.encode(texts, kind, batch_tokens=batch_tokens, what=what)
    return vectors


def _manifest(
    config: ExportConfig, encoder: Encoder, checkpoint: Path, exported_model: Path, parity: dict[str, float]
) -> ModelManifest:
    files = hash_files(exported_model, [ENCODER_FILE, *_names(exported_model, ONNX_FOLDER)])
    # Without the manifest, in which the run's settings stand: equal weights have equal digests.
    trained = hash_files(checkpoint, [name for name in _names(checkpoint) if name != MANIFEST])
    agreed = {name: value for name, value in encoder.config if name in ModelManifest.model_fields}
    return ModelManifest(
        files=files,
        digest=digest_of(files),
        precision=config.export_dtype,
        opset=config.opset,
        dimension=encoder.dimension,
        checkpoint_digest=digest_of(trained),
        parity=parity,
        onnxruntime=onnxruntime.__version__,
        torch=torch.__version__,
        **agreed,
    )


def _names(directory: Path, below: str = "") -> list[str]:
    """Files of ``directory``, below its folder ``below``, by their relative paths."""
    return [path.relative_to(directory).as_posix() for path in (directory / below).rglob("*") if path.is_file()]
