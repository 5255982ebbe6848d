"""The deploy bundle, which proves a served model without its weights: probe texts and the vectors they must get."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from components.core.encoder.config import ENCODER_FILE, EncoderConfig, Kind, read_encoder
from components.core.errors import InputError
from components.core.serving.model_manifest import MODEL_MANIFEST, ModelManifest, read_model_manifest

PROBES = "probes.jsonl"
REFERENCE_VECTORS = "reference_vectors.safetensors"
BUNDLE_FILES = (MODEL_MANIFEST, PROBES, REFERENCE_VECTORS, ENCODER_FILE)


@dataclass(frozen=True)
class Probe:
    """A text whose vector is known."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Bundle:
    """Probes with their vectors by the checkpoint and by the base model, and the descriptions of the model.

    ``tuned``, ``base``: float32 [probes, dimension], computed by PyTorch in fp32.
    """

    manifest: ModelManifest
    encoder: EncoderConfig
    probes: list[Probe]
    tuned: np.ndarray
    base: np.ndarray


def write_probes(directory: Path, probes: list[Probe], tuned: np.ndarray, base: np.ndarray) -> None:
    """Write probe texts and their reference vectors into ``directory``.

    ``tuned`` and ``base`` are float32 [len(probes), dimension].
    """
    lines = (json.dumps({"kind": probe.kind, "text": probe.text}, ensure_ascii=False) for probe in probes)
    (directory / PROBES).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    save_file({"tuned": tuned, "base": base}, directory / REFERENCE_VECTORS)


def write_bundle(bundle: Bundle, directory: Path) -> None:
    """Write the files of ``bundle`` into ``directory``, which exists."""
    bundle.manifest.write(directory)
    bundle.encoder.write(directory)
    write_probes(directory, bundle.probes, bundle.tuned, bundle.base)


def read_bundle(directory: Path) -> Bundle:
    """Read a deploy bundle, or an exported model, which has the same files. Raises InputError when it is not whole."""
    manifest = read_model_manifest(directory)
    try:
        # Not splitlines(): a text may hold U+2028, which ends no line of JSON Lines.
        lines = (directory / PROBES).read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines if line]
        probes = [Probe(record["kind"], record["text"]) for record in records]
        vectors = load_file(directory / REFERENCE_VECTORS)
        expected = (len(probes), manifest.dimension)
        tuned, base = vectors["tuned"], vectors["base"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{directory} is no deploy bundle ({error!r}): give the one that export made") from None
    for name, array in (("tuned", tuned), ("base", base)):
        if array.shape != expected or not np.isfinite(array).all():
            raise InputError(
                f"{directory}: reference vectors '{name}' are {array.shape}, expected finite {expected}: export again"
            )
    return Bundle(manifest, read_encoder(directory), probes, tuned, base)
