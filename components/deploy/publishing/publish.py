"""Where the cluster reads the model from: a place of its own for each release, or where the model lies already."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.artifacts import MANIFEST
from components.core.encoder.config import ENCODER_FILE
from components.core.errors import InputError
from components.core.serving.bundle import BUNDLE_FILES, Bundle, write_bundle
from components.core.serving.model_manifest import (
    CHECKPOINT_FOLDER,
    MODEL_MANIFEST,
    ModelManifest,
    ServedFile,
    compute_digest,
)
from components.deploy.backends.contracts import Contract
from components.deploy.component import DeployConfig
from components.deploy.publishing.storage import copy_release, to_served_uri


@dataclass(frozen=True)
class ModelUris:
    """URIs of what earlier stages made; empty for what is not there."""

    exported_model: str
    checkpoint: str = ""


def publish_model(config: DeployConfig, bundle: Bundle, contract: Contract, models: ModelUris) -> str:
    """Where the cluster reads what ``contract`` serves, copied to ``release_prefix`` when there is one.

    Raises InputError when it is not there, is not what ``bundle`` proves, or lies where a cluster cannot read;
    ActionNeeded when the copy fails.
    """
    if config.model_uri:
        return to_served_uri(config.model_uri)
    # An export with enabled=false holds the checkpoint; any other one only names it.
    inside = bundle.manifest.model_format == "checkpoint"
    wanted = "checkpoint" if contract.serves == "checkpoint" and not inside else "exported_model"
    source = models.checkpoint if wanted == "checkpoint" else models.exported_model
    if not source:
        raise InputError(
            f"{contract.title} serves the artifact {wanted}: give its URI ({wanted}_uri), or set model_uri to a copy "
            f"of it"
        )
    if not config.release_prefix:
        uri = to_served_uri(source)
    elif wanted == "checkpoint":
        uri = publish_checkpoint(source, bundle, config.release_prefix)
    else:
        uri = publish_export(source, bundle.manifest, config.release_prefix)
    return f"{uri}/{CHECKPOINT_FOLDER}" if inside else uri


def publish_export(source: str, manifest: ModelManifest, prefix: str) -> str:
    """Copy the exported model at ``source`` to ``prefix``/sha256-DIGEST and return that URI; a whole copy is left.

    Raises InputError when ``source`` is not the model of ``manifest``, ActionNeeded when a place cannot be read or
    written.
    """

    def files_of(description: bytes) -> Mapping[str, ServedFile]:
        try:
            published = ModelManifest.model_validate_json(description)
        except ValueError as error:
            raise InputError(f"{source}: {MODEL_MANIFEST} cannot be read ({str(error).splitlines()[0]})") from None
        if published != manifest:
            raise InputError(f"{source} is not the model of deploy_bundle: give the two that one export made")
        return manifest.files

    target = f"{prefix.rstrip('/')}/sha256-{manifest.digest}"
    beside = [name for name in BUNDLE_FILES if name != MODEL_MANIFEST and name not in manifest.files]
    copy_release(source, target, described_in=MODEL_MANIFEST, files_of=files_of, beside=beside)
    return target


def publish_checkpoint(source: str, bundle: Bundle, prefix: str) -> str:
    """The same for a checkpoint: its own manifest has the sha256 of each file, ``bundle`` the digest of all."""
    digest = bundle.manifest.checkpoint_digest

    def files_of(description: bytes) -> Mapping[str, ServedFile]:
        try:
            listed = json.loads(description)["files"]
            files = {name: ServedFile.model_validate(file) for name, file in listed.items()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{source}: {MANIFEST} cannot be read: give the checkpoint that finetune made") from None
        if compute_digest(files) != digest:
            raise InputError(f"{source} is not the checkpoint of deploy_bundle: give the one that was exported")
        return files

    target = f"{prefix.rstrip('/')}/sha256-{digest}"
    with tempfile.TemporaryDirectory() as directory:
        # Beside the model lies what proves it, as with an exported one.
        write_bundle(bundle, Path(directory))
        added = {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.name != ENCODER_FILE}
    copy_release(source, target, described_in=MANIFEST, files_of=files_of, added=added)
    return target
