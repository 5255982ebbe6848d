"""The artifacts that stages exchange: one name, one type, one layout, and a manifest that proves them whole.

KFP's own transfer is not checksummed and takes a partly uploaded directory for a whole one, so every directory that
a stage makes carries ``manifest.json`` with the sha256 of each file. It is written last; a reader checks it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.core.errors import InputError

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class ArtifactType:
    """An artifact that stages exchange.

    ``kfp_type`` is the class of kfp.dsl; ``is_file`` says that the artifact is a single file (KFP's UI renders HTML
    only then) or has no content of its own (Metrics). ``accepts`` are other artifacts that may be given under this
    name, as a checkpoint may be given as ``champion``.
    """

    name: str
    kfp_type: str
    summary: str
    is_file: bool = False
    schema_version: int = 1
    accepts: tuple[str, ...] = ()


def _types(*types: ArtifactType) -> dict[str, ArtifactType]:
    return {t.name: t for t in types}


ARTIFACTS = _types(
    ArtifactType("corpus", "Dataset", "Text files, read recursively.", accepts=("qa_pairs",)),
    ArtifactType("qa_pairs", "Dataset", "Questions with the passages that answer them: `qa_pairs.jsonl`."),
    ArtifactType("generation_report", "HTML", "The generated questions as one self-contained page.", is_file=True),
    ArtifactType("training_data", "Dataset", "Training examples with mined negatives, and their passages."),
    ArtifactType("eval_data", "Dataset", "Held-out test set in BEIR format: corpus, queries, qrels."),
    ArtifactType(
        "golden_eval",
        "Dataset",
        "Evaluation set of your own in BEIR format. Training never sees its questions; if it is also given "
        "as `frozen_eval`, it never sees the documents that answer them.",
        accepts=("eval_data",),
    ),
    ArtifactType(
        "frozen_eval",
        "Dataset",
        "Test set of an earlier run: it becomes `eval_data` again, and training never sees its documents.",
        accepts=("eval_data", "golden_eval"),
    ),
    ArtifactType(
        "past_runs", "Artifact", "This run's place in the history at `history_uri`: what is new, which model is served."
    ),
    ArtifactType("data_report", "HTML", "What happened to the data, as one self-contained page.", is_file=True),
    ArtifactType("checkpoint", "Model", "Hugging Face directory: safetensors, tokenizer, `encoder.json`."),
    ArtifactType("training_report", "HTML", "The course of training as one self-contained page.", is_file=True),
    ArtifactType("champion", "Model", "Checkpoint of the model that is served now.", accepts=("checkpoint",)),
    ArtifactType(
        "miner", "Model", "Checkpoint that mines negatives instead of the base model.", accepts=("checkpoint",)
    ),
    ArtifactType(
        "checker",
        "Model",
        "Second checkpoint: passages that it also rates as answers are not used as hard negatives.",
        accepts=("checkpoint",),
    ),
    ArtifactType("eval_results", "Artifact", "`eval_results.json`: every metric of every model."),
    ArtifactType("report", "HTML", "The evaluation as one self-contained page.", is_file=True),
    ArtifactType("exported_model", "Model", "`onnx/` (or `checkpoint/`), tokenizer, probes, `model-manifest.json`."),
    ArtifactType("deploy_bundle", "Artifact", "What deploy needs to prove a served model, without its weights."),
    ArtifactType("deployment", "Artifact", "The objects as applied, the endpoint, the verification report."),
    *(
        ArtifactType(f"{stage}_metrics", "Metrics", f"Figures of {stage} for the comparison of runs.", is_file=True)
        for stage in ("sdg", "prep", "finetune", "eval", "export", "deploy")
    ),
)


def seal(directory: Path, kind: str, **provenance: Any) -> str:
    """Write ``manifest.json`` for everything in ``directory``; return the manifest's own sha256 (hex).

    Call it last: files changed afterwards make the artifact unreadable. ``provenance`` is stored beside the files.
    """
    files = {
        str(PurePosixPath(path.relative_to(directory))): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "schema_version": ARTIFACTS[kind].schema_version,
        **provenance,
        "files": files,
    }
    body = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
    target = directory / MANIFEST
    partial = directory / (MANIFEST + ".partial")
    with partial.open("wb") as out:
        out.write(body)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(target)
    return hashlib.sha256(body).hexdigest()


def verify(directory: Path, kind: str, *, sealed: bool = False) -> str | None:
    """Check ``directory`` against its manifest; return the manifest's sha256, or None for one without a manifest.

    Users bring directories that no stage made (a corpus, labelled records, a checkpoint from elsewhere); they have no
    manifest and are taken as they are, unless ``sealed`` says that a stage made this one. Raises InputError naming
    the first file that is missing, added or changed.
    """
    where = f"{kind} at {directory}"
    manifest_file = directory / MANIFEST
    if not manifest_file.is_file():
        if sealed:
            raise InputError(f"{where} has no {MANIFEST}: it is not complete; run the stage that makes it again")
        return None
    body = manifest_file.read_bytes()
    try:
        manifest = json.loads(body)
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        sealed_kind, version = manifest["kind"], manifest["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: {MANIFEST} cannot be read; copy the artifact again from its source") from None
    if sealed_kind not in (kind, *ARTIFACTS[kind].accepts):
        raise InputError(f"{where} is a '{sealed_kind}' artifact: give the directory of a '{kind}'")
    if version != ARTIFACTS[sealed_kind].schema_version:
        raise InputError(
            f"{where} has schema version {version}, this release reads {ARTIFACTS[sealed_kind].schema_version}: "
            f"make it again with this release"
        )
    _verify_files(directory, files, where)
    return hashlib.sha256(body).hexdigest()


def _verify_files(directory: Path, files: dict[str, str], where: str) -> None:
    present = {str(PurePosixPath(p.relative_to(directory))) for p in directory.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(files)):
        problem = "is missing" if name in files else "is not in its manifest"
        raise InputError(f"{where}: {name} {problem}; copy the artifact again from its source")
    for name, expected in sorted(files.items()):
        if _sha256(directory / name) != expected:
            raise InputError(f"{where}: {name} does not have the sha256 of its manifest; copy it again from its source")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
