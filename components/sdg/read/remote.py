"""Fetches documents from a prefix of a bucket, or from a data set on the Hugging Face hub at one commit.

All names and sizes are known before anything is fetched. A file appears on the disk whole or not at all, and one that
is there already, unchanged, is not fetched again: what was interrupted goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obstore.exceptions import InvalidPathError

from components.core.errors import ActionNeeded, InputError, Transient
from components.core.store.bucket import BucketStore
from components.core.store.errors import to_stage_error
from components.sdg.settings.reading_settings import HUB_URI

_AT_ONCE = 8
_REFUSED = (401, 403)


@dataclass(frozen=True)
class Remote:
    """A corpus that has to be fetched.

    Attributes:
        root: Directory that fetched files lie in.
        sizes: Bytes of all files, by their names below ``root``.
        fetch: Fetches the files of the given names.
    """

    root: Path
    sizes: dict[str, int]
    fetch: Callable[[Sequence[str]], None]


def open_remote(uri: str, where: str, directory: Path) -> Remote:
    """List the files at ``uri``; nothing is fetched yet.

    Args:
        uri: ``hf://DATASET@COMMIT/FOLDER``, or a bucket's ``s3://``, ``gs://`` or ``minio://`` with a prefix.
        where: What error messages call the corpus.
        directory: Where fetched files will be written.

    Raises:
        InputError: There is nothing at ``uri``, or an object's name is no path. ``fetch`` raises these errors, too.
        ActionNeeded: Access is refused.
        Transient: The bucket or the hub does not answer.
    """
    return _list_dataset(uri, where, directory) if uri.startswith("hf://") else _list_bucket(uri, where, directory)


def _list_bucket(uri: str, where: str, directory: Path) -> Remote:
    with _translate_bucket_errors(where):
        bucket = BucketStore(uri)
        objects = bucket.list_files()

    def fetch(name: str) -> None:
        size, modified = objects[name]
        if not _is_fetched(directory / name, size, modified):
            with _translate_bucket_errors(where):
                _write_file(directory / name, bucket.read_chunks(name), size, modified)

    return Remote(directory, {name: size for name, (size, _) in objects.items()}, _fetch_in_parallel(fetch, objects))


def _list_dataset(uri: str, where: str, directory: Path) -> Remote:
    import huggingface_hub as hub  # noqa: PLC0415 -- only users of the hub need the package
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()
    matched = HUB_URI.fullmatch(uri)
    assert matched is not None  # CorpusSource accepts no other URI
    dataset, revision = matched["dataset"], matched["revision"]
    folder = (matched["folder"] or "").strip("/")
    # The environment only: never the file where `hf auth login` keeps a token. The endpoint may be a mirror.
    token: Any = os.environ.get("HF_TOKEN") or False
    endpoint = os.environ.get("HF_ENDPOINT") or None
    here = {"repo_type": "dataset", "revision": revision, "token": token}
    with _translate_hub_errors(where):
        tree = hub.HfApi(endpoint=endpoint).list_repo_tree(dataset, folder or None, recursive=True, **here)
        files = [entry for entry in tree if isinstance(entry, hub.RepoFile)]
    start = f"{folder}/" if folder else ""
    sizes = {entry.path.removeprefix(start): entry.size for entry in files if entry.path.startswith(start)}

    def fetch(name: str) -> None:
        with _translate_hub_errors(where):
            hub.hf_hub_download(dataset, start + name, local_dir=directory, endpoint=endpoint, **here)

    return Remote(directory / folder, sizes, _fetch_in_parallel(fetch, sizes))


def _fetch_in_parallel(fetch: Callable[[str], None], known: Container[str]) -> Callable[[Sequence[str]], None]:
    def fetch_all(names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(fetch, [name for name in names if name in known]))

    return fetch_all


def _is_fetched(path: Path, size: int, modified: float) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_size == size and status.st_mtime == modified


def _write_file(path: Path, chunks: Iterator[bytes], size: int, modified: float) -> None:
    """Write ``size`` bytes under another name first. Raises Transient when there are more or fewer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fetched names are never hidden, so none is like this.
    partial = path.with_name(f".{threading.get_ident()}.partial")
    written = 0
    try:
        with partial.open("wb") as out:
            for chunk in chunks:
                written += out.write(chunk)
                if written > size:
                    break
        if written != size:
            raise Transient(f"{path.name} had {size} bytes when it was listed, and has not now: run again")
        os.utime(partial, (modified, modified))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _translate_bucket_errors(where: str) -> Iterator[None]:
    try:
        yield
    except InvalidPathError as error:
        raise InputError(f"{where} holds an object whose name is no path ({_first_line(error)}): rename it") from None
    except Exception as error:
        raise to_stage_error(error, where) from None


@contextmanager
def _translate_hub_errors(where: str) -> Iterator[None]:
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError:
        raise ActionNeeded(f"{where}: the hub refuses it: accept its terms and set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        raise InputError(f"{where}: no such data set, commit or folder, or HF_TOKEN may not see it") from None
    except errors.HFValidationError as error:
        raise InputError(f"{where} is no name of a data set ({_first_line(error)})") from None
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in _REFUSED:
            raise ActionNeeded(f"{where}: the hub refuses access: check HF_TOKEN") from None
        raise Transient(f"{where} cannot be read ({_first_line(error)}): run again later") from None
    except Exception as error:  # whatever the library's HTTP client raises
        raise Transient(f"{where} cannot be read ({_first_line(error)}): check the network, or run again") from None


def _first_line(error: BaseException) -> str:
    """Return the first line of the error: the packages add pages of detail."""
    return " ".join((str(error).splitlines() or [""])[0].split())[:300] or type(error).__name__
