"""Where the served model lies: a URI that the cluster reads, copied to a place of its own when there is one."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.core.errors import InputError
from components.core.serving.bundle import BUNDLE_FILES, Bundle, read_bundle
from components.core.serving.model_manifest import ServedFile
from components.core.store import Store, open_store
from components.core.store.errors import is_missing_bucket, summarize_error, to_stage_error

SERVED_SCHEMES = ("s3", "gs", "pvc", "oci", "hf")
_log = logging.getLogger(__name__)


def to_served_uri(uri: str) -> str:
    """``uri`` as KServe's storage initializer knows it. Raises InputError for a place that a cluster cannot read."""
    parts = urlsplit(uri)
    scheme = {"minio": "s3"}.get(parts.scheme, parts.scheme)
    if scheme not in SERVED_SCHEMES:
        raise InputError(
            f"the model is at {uri}, which a cluster cannot read: set release_prefix (s3://, gs://) to copy it there, "
            f"model_uri to serve another copy, or target=local"
        )
    return f"{scheme}://{parts.netloc}{parts.path}".rstrip("/")


def find_directory(uri: str) -> Path | None:
    """The directory that a path or a file:// URI names; None for any other URI. Raises InputError when it is none."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    path = Path(unquote(parts.path) if parts.scheme else uri)
    if not path.is_dir():
        raise InputError(f"exported_model: there is no directory {path}: give the one that export made")
    return path


def load_bundle(where: str) -> Bundle:
    """The deploy bundle in a directory, or at the URI of one, or of a model that ``publish`` copied.

    Raises InputError when there is none, and what ``to_stage_error`` says of a place that cannot be read.
    """
    if "://" not in where:
        return read_bundle(Path(where))
    store = open_store(where, setting="bundle")
    with tempfile.TemporaryDirectory() as directory:
        try:
            for name in BUNDLE_FILES:
                (Path(directory) / name).write_bytes(store.read(name))
        except FileNotFoundError as error:
            raise InputError(f"{where} is no deploy bundle ({summarize_error(error)})") from None
        except Exception as error:
            raise to_stage_error(error, where) from None
        return read_bundle(Path(directory))


def copy_release(
    source: str,
    target: str,
    *,
    described_in: str,
    files_of: Callable[[bytes], Mapping[str, ServedFile]],
    beside: Sequence[str] = (),
    added: Mapping[str, bytes] | None = None,
) -> None:
    """Copy what lies at ``source`` to ``target``; a whole copy is left as it is.

    ``files_of`` reads the file ``described_in``, which lists the others with their sha256, and raises InputError when
    it is not the expected one. Every file is hashed on its way; those ``beside`` are not listed, and the files
    ``added`` are written as they stand. The description is written last: what has one is whole. A copy that was cut
    short goes on with the first file that is not there. Raises InputError when ``source`` is not what it says, and
    what ``to_stage_error`` says when a place cannot be read or written.
    """
    if find_directory(source) is None:
        to_served_uri(source)
    origin, release = open_store(source, setting="the model"), open_store(target, setting="release_prefix")
    where = f"the copy of {source} to {target} (Secret models-s3, or the identity of deploy's service account)"
    try:
        if _is_whole(release, described_in, files_of):
            _log.info("%s is there already", target)
            return
        description = _description(origin, source, described_in)
        for name, expected in sorted(files_of(description).items()):
            _copy(origin, release, name, expected, f"{source}/{name} does not have the sha256 of {described_in}")
        for name in beside:
            release.write(name, origin.read(name))
        for name, content in (added or {}).items():
            release.write(name, content)
        release.write(described_in, description)
    except Exception as error:
        raise to_stage_error(error, where) from None
    _log.info("copied the model to %s", target)


def _is_whole(release: Store, described_in: str, files_of: Callable[[bytes], Mapping[str, ServedFile]]) -> bool:
    try:
        wanted = files_of(release.read(described_in))
    except (FileNotFoundError, InputError):
        return False
    return all(release.is_stored(name, size=file.bytes, sha256=file.sha256) for name, file in wanted.items())


def _description(origin: Store, source: str, name: str) -> bytes:
    """What lies at ``source``, in its own words. Raises InputError when it says nothing."""
    try:
        return origin.read(name)
    except FileNotFoundError as error:
        if is_missing_bucket(error):
            raise
        raise InputError(
            f"{source} is not whole ({summarize_error(error)}): give what export or finetune made"
        ) from None


def _copy(origin: Store, release: Store, name: str, expected: ServedFile, problem: str) -> None:
    """Copy one file in parts unless it is there; one that is not as ``expected`` is given up before its last part."""
    if release.is_stored(name, size=expected.bytes, sha256=expected.sha256):
        return
    chunks = partial(_checked, origin, name, expected, problem)
    release.write_chunks(name, chunks, size=expected.bytes, sha256=expected.sha256)


def _checked(origin: Store, name: str, expected: ServedFile, problem: str) -> Iterator[bytes]:
    """The chunks as they are; raises InputError after the last one when they are not what was expected."""
    digest = hashlib.sha256()
    for chunk in origin.read_chunks(name):
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != expected.sha256:
        raise InputError(f"{problem}: copy it again")
