"""Where the served model lies: a URI that the cluster reads, copied to a place of its own when there is one."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.core.bundle import BUNDLE_FILES, Bundle, read_bundle
from components.core.errors import InputError
from components.core.model_manifest import MODEL_MANIFEST, ModelManifest, ServedFile
from components.core.store import Store, open_store
from components.core.store.errors import no_such_bucket, short, store_failure

SERVED_SCHEMES = ("s3", "gs", "pvc", "oci", "hf")
_log = logging.getLogger(__name__)


def served_uri(uri: str) -> str:
    """``uri`` as KServe's storage initializer knows it. Raises InputError for a place that a cluster cannot read."""
    parts = urlsplit(uri)
    scheme = {"minio": "s3"}.get(parts.scheme, parts.scheme)
    if scheme not in SERVED_SCHEMES:
        raise InputError(
            f"the model is at {uri}, which a cluster cannot read: set release_prefix (s3://, gs://) to copy it there, "
            f"model_uri to serve another copy, or target=local"
        )
    return f"{scheme}://{parts.netloc}{parts.path}".rstrip("/")


def local_directory(uri: str) -> Path | None:
    """The directory that a path or a file:// URI names; None for any other URI. Raises InputError when it is none."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not path.is_dir():
        raise InputError(f"exported_model: there is no directory {path}: give the one that export made")
    return path


def bundle_at(where: str) -> Bundle:
    """The deploy bundle in a directory, or at the URI of one, or of a model that ``publish`` copied.

    Raises InputError when there is none, and what ``store_failure`` says of a place that cannot be read.
    """
    if "://" not in where:
        return read_bundle(Path(where))
    store = open_store(where, setting="bundle")
    with tempfile.TemporaryDirectory() as directory:
        try:
            for name in BUNDLE_FILES:
                (Path(directory) / name).write_bytes(store.read(name))
        except FileNotFoundError as error:
            raise InputError(f"{where} is no deploy bundle ({short(error)})") from None
        except Exception as error:
            raise store_failure(error, where) from None
        return read_bundle(Path(directory))


def publish(source: str, manifest: ModelManifest, prefix: str) -> str:
    """Copy the model at ``source`` to ``prefix``/sha256-DIGEST and return that URI; a whole copy is left as it is.

    Every file is hashed on its way, and the model's manifest is written last: what has one is whole. A copy that was
    cut short goes on with the first file that is not there. Raises InputError when ``source`` is not the model of
    ``manifest``, and what ``store_failure`` says when a place cannot be read or written.
    """
    target = f"{prefix.rstrip('/')}/sha256-{manifest.digest}"
    if local_directory(source) is None:
        served_uri(source)
    origin, release = open_store(source, setting="exported_model"), open_store(target, setting="release_prefix")
    where = f"the copy of {source} to {target} (Secret models-s3, or the identity of deploy's service account)"
    try:
        if _is_whole(release, manifest):
            _log.info("%s is there already", target)
            return target
        description = _description(origin, source, manifest)
        others = [name for name in BUNDLE_FILES if name != MODEL_MANIFEST and name not in manifest.files]
        for name, expected in sorted(manifest.files.items()):
            _copy(origin, release, name, f"{source}/{name}", expected)
        for name in others:
            release.write(name, origin.read(name))
        release.write(MODEL_MANIFEST, description)
    except Exception as error:
        raise store_failure(error, where) from None
    _log.info("copied the model to %s", target)
    return target


def _is_whole(release: Store, manifest: ModelManifest) -> bool:
    try:
        written = release.read(MODEL_MANIFEST)
    except FileNotFoundError:
        return False
    return ModelManifest.model_validate_json(written) == manifest and all(
        release.holds(name, size=file.bytes, sha256=file.sha256) for name, file in manifest.files.items()
    )


def _description(origin: Store, source: str, manifest: ModelManifest) -> bytes:
    """The model's own manifest, byte by byte. Raises InputError unless it says what ``manifest`` says."""
    try:
        description = origin.read(MODEL_MANIFEST)
    except FileNotFoundError as error:
        if no_such_bucket(error):
            raise
        raise InputError(f"{source} is no exported model ({short(error)}): give what export made") from None
    try:
        found = ModelManifest.model_validate_json(description)
    except ValueError as error:
        raise InputError(f"{source}: {MODEL_MANIFEST} cannot be read ({short(error)})") from None
    if found != manifest:
        raise InputError(f"{source} is not the model of deploy_bundle: give the two that one export made")
    return description


def _copy(origin: Store, release: Store, name: str, where: str, expected: ServedFile) -> None:
    """Copy one file in parts unless it is there; one that is not as ``expected`` is given up before its last part."""
    if release.holds(name, size=expected.bytes, sha256=expected.sha256):
        return
    chunks = partial(_checked, origin, name, where, expected)
    release.write_chunks(name, chunks, size=expected.bytes, sha256=expected.sha256)


def _checked(origin: Store, name: str, where: str, expected: ServedFile) -> Iterator[bytes]:
    """The chunks as they are; raises InputError after the last one when they are not what was expected."""
    found = hashlib.sha256()
    for chunk in origin.chunks(name):
        found.update(chunk)
        yield chunk
    if found.hexdigest() != expected.sha256:
        raise InputError(f"{where} does not have the sha256 of {MODEL_MANIFEST}: copy the exported model again")
