"""Where the served model lies: a URI that the cluster reads, copied to a place of its own when there is one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from components.core.bundle import BUNDLE_FILES, Bundle, read_bundle
from components.core.errors import ActionNeeded, InputError
from components.core.model_manifest import MODEL_MANIFEST, ModelManifest, ServedFile

SERVED_SCHEMES = ("s3", "gs", "pvc", "oci", "hf")
_CHUNK_BYTES = 8 * 2**20
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

    Raises InputError when there is none, ActionNeeded when the place cannot be read.
    """
    if "://" not in where:
        return read_bundle(Path(where))
    if urlsplit(where).scheme not in ("s3", "gs", "minio", "file"):
        raise InputError(f"{where} is no place of a deploy bundle: expected a directory, s3:// or gs://")
    import obstore  # noqa: PLC0415
    from obstore.exceptions import BaseError  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        try:
            store = _store(where)
            for name in BUNDLE_FILES:
                (Path(directory) / name).write_bytes(bytes(obstore.get(store, name).bytes()))
        except FileNotFoundError as error:
            raise InputError(f"{where} is no deploy bundle ({str(error).splitlines()[0]})") from None
        except (BaseError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ActionNeeded(f"{where} cannot be read ({reason}): check address, rights and credentials") from None
        return read_bundle(Path(directory))


def publish(source: str, manifest: ModelManifest, prefix: str) -> str:
    """Copy the model at ``source`` to ``prefix``/sha256-DIGEST and return that URI; a whole copy is left as it is.

    Every file is hashed on its way, and the model's manifest is written last: what has one is whole. Raises
    InputError when ``source`` is not the model of ``manifest``, ActionNeeded when a place cannot be read or written.
    """
    target = f"{prefix.rstrip('/')}/sha256-{manifest.digest}"
    # Only users of release_prefix need the package.
    import obstore  # noqa: PLC0415
    from obstore.exceptions import BaseError  # noqa: PLC0415

    try:
        origin, release = _store(source), _store(target)
        if _is_whole(obstore, release, manifest):
            _log.info("%s is there already", target)
            return target
        description = bytes(obstore.get(origin, MODEL_MANIFEST).bytes())
        if ModelManifest.model_validate_json(description) != manifest:
            raise InputError(f"{source} is not the model of deploy_bundle: give the two that one export made")
        others = [name for name in BUNDLE_FILES if name != MODEL_MANIFEST and name not in manifest.files]
        for name in [*sorted(manifest.files), *others]:
            asyncio.run(_copy(obstore, origin, release, name, f"{source}/{name}", manifest.files.get(name)))
        obstore.put(release, MODEL_MANIFEST, description)
    except FileNotFoundError as error:
        raise InputError(
            f"{source} is no exported model ({str(error).splitlines()[0]}): give what export made"
        ) from None
    except (BaseError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ActionNeeded(
            f"the model cannot be copied from {source} to {target} ({reason}): check both places, and the rights and "
            f"credentials of deploy (Secret models-s3, or the workload identity of its service account)"
        ) from None
    except ValueError as error:
        raise InputError(f"{source}: {MODEL_MANIFEST} cannot be read ({str(error).splitlines()[0]})") from None
    _log.info("copied the model to %s", target)
    return target


def _store(uri: str) -> Any:
    from obstore.store import LocalStore, from_url  # noqa: PLC0415

    if path := local_directory(uri):
        return LocalStore(path)
    # Object stores inside of a cluster (SeaweedFS, MinIO) are often reached without TLS.
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return from_url(served_uri(uri), client_options={"allow_http": True} if plain else None)


def _is_whole(obstore: Any, release: Any, manifest: ModelManifest) -> bool:
    try:
        written = bytes(obstore.get(release, MODEL_MANIFEST).bytes())
        sizes = {name: obstore.head(release, name)["size"] for name in manifest.files}
    except FileNotFoundError:
        return False
    wanted = {name: file.bytes for name, file in manifest.files.items()}
    return ModelManifest.model_validate_json(written) == manifest and sizes == wanted


async def _copy(obstore: Any, origin: Any, release: Any, name: str, where: str, expected: ServedFile | None) -> None:
    """Copy one file in parts; one that is not as ``expected`` is given up before its last part."""
    found = await obstore.get_async(origin, name)
    await obstore.put_async(release, name, _checked(found.stream(min_chunk_size=_CHUNK_BYTES), where, expected))


async def _checked(chunks: Any, where: str, expected: ServedFile | None) -> AsyncIterator[bytes]:
    """The chunks as they are; raises InputError after the last one when they are not what was expected."""
    found = hashlib.sha256()
    async for chunk in chunks:
        found.update(chunk)
        yield bytes(chunk)
    if expected and found.hexdigest() != expected.sha256:
        raise InputError(f"{where} does not have the sha256 of {MODEL_MANIFEST}: copy the exported model again")
