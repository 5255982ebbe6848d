"""The manifest of an exported model: which files are served, what they must hash to, and what was measured."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.errors import InputError
from components.core.serving.vector_limits import CosineSummary, ParityLimits, Precision, choose_limits

MODEL_MANIFEST = "model-manifest.json"
# Folders of exported_model, one for each form of the model.
ONNX_FOLDER, TENSORRT_FOLDER, CHECKPOINT_FOLDER = "onnx", "tensorrt", "checkpoint"


class ServedFile(BaseModel):
    """Hash and size of a served file."""

    sha256: str
    bytes: int


class TensorRTPlanInfo(BaseModel):
    """Hardware that a TensorRT plan runs on, and sizes that it takes: least, best and greatest of its profile.

    ``compute_capability`` and ``gpu`` are those it was built on: all it runs on without ``hardware_compatibility``.
    """

    tensorrt: str
    compute_capability: str
    gpu: str
    version_compatible: bool
    hardware_compatibility: str
    batch: tuple[int, int, int]
    length: tuple[int, int, int]


class LatencyMeasurement(BaseModel):
    """Median time of one call of one format of the model, with ``batch`` texts of ``length`` tokens."""

    form: str
    runs_on: str
    batch: int
    length: int
    milliseconds: float
    tokens_per_second: float


class ModelManifest(BaseModel):
    """``model-manifest.json``. ``digest`` names the release: sha256 over the sorted lines ``path sha256``.

    ``model_format`` says what is served: the ONNX graph (and a TensorRT plan when there is one), or the checkpoint
    itself. ``precision`` is what it computes in. ``opset`` and ``onnxruntime`` are null for a checkpoint.
    ``dimensions_input`` says that the graph takes ``dimensions``. ``parity``, ``plan_parity`` and ``retrieval`` are the
    figures that passed; ``noise_floor`` is what half precision alone makes of the checkpoint's vectors.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    format: Literal[1] = 1
    files: dict[str, ServedFile]
    digest: str
    model_format: Literal["onnx", "checkpoint"] = "onnx"
    precision: Precision
    opset: int | None
    pooling: str
    l2_normalize: bool
    query_prefix: str
    passage_prefix: str
    query_max_length: int
    passage_max_length: int
    dimension: int
    base_model: str
    base_model_revision: str | None
    checkpoint_digest: str
    parity: dict[str, Any]
    noise_floor: dict[str, float] = {}
    retrieval: dict[str, float] = {}
    dimensions_input: bool = False
    plan: TensorRTPlanInfo | None = None
    plan_parity: dict[str, float] = {}
    performance: list[LatencyMeasurement] = []
    onnxruntime: str | None
    torch: str

    @property
    def limits(self) -> ParityLimits:
        """Limits for its vectors wherever they are served: those of ``precision``, lowered for ``noise_floor``."""
        return choose_limits(self.precision, CosineSummary.from_figures(self.noise_floor) if self.noise_floor else None)

    def write(self, directory: Path) -> None:
        """Write ``model-manifest.json`` into ``directory``."""
        (directory / MODEL_MANIFEST).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def hash_files(directory: Path, names: list[str]) -> dict[str, ServedFile]:
    """Return sha256 and size of the files ``names`` of ``directory``."""
    files = {}
    for name in sorted(names):
        with (directory / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = ServedFile(sha256=digest, bytes=(directory / name).stat().st_size)
    return files


def compute_digest(files: dict[str, ServedFile]) -> str:
    """Return the sha256 over the sorted lines ``path sha256`` of a set of files."""
    lines = "".join(f"{path} {file.sha256}\n" for path, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_model_manifest(directory: Path) -> ModelManifest:
    """Read the manifest in ``directory``. Raises InputError when there is none, or one that contradicts itself."""
    path = directory / MODEL_MANIFEST
    if not path.is_file():
        raise InputError(f"{directory} has no {MODEL_MANIFEST}: give the directory that export made")
    try:
        manifest = ModelManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise InputError(f"{path} cannot be read ({where}: {first['msg']}): export again") from None
    if compute_digest(manifest.files) != manifest.digest:
        raise InputError(f"{path}: its digest is not that of the files it lists: export again")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path} lists {name}, which is outside of the model: export again")
    return manifest


def check_files(directory: Path, manifest: ModelManifest) -> None:
    """Check the files that ``manifest`` lists. Raises InputError naming the first that is missing or changed."""
    for name, expected in sorted(manifest.files.items()):
        if not (directory / name).is_file():
            raise InputError(f"{directory}: {name} is missing: copy the exported model again from its source")
        if hash_files(directory, [name])[name] != expected:
            raise InputError(
                f"{directory}: {name} does not have the sha256 of {MODEL_MANIFEST}: copy the exported model again"
            )
