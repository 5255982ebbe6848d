"""Lists the files of each corpus: a directory, a prefix of a bucket, or a data set on the Hugging Face hub.

Names, sizes and extensions decide before anything is opened or fetched.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from components.core.errors import InputError
from components.sdg.read.remote import Remote, open_remote
from components.sdg.settings.reading_settings import CorpusSource, ReadingSettings

_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes that file systems take
_LONG_EXTENSIONS = (".parquet", ".safetensors")  # large, on the hub often, and no text
RECORDS = ".jsonl"


def _fetch_nothing(_names: Sequence[str]) -> None:
    """Do nothing: the files of a directory need not be fetched."""


@dataclass
class SourceFiles:
    """Files of one corpus that may be read, and counts of those that were left out without opening them.

    Attributes:
        root: Directory that holds the files, once they are fetched.
        where: What error messages call the corpus.
        source: Name of the corpus that its documents carry; empty when there is only one.
        names: Paths below ``root`` of the files to read, with slashes, in the order in which they are read.
        skipped: Number of files that were left out, by reason.
        suffixes: Number of regular files, by extension.
        fetch: Makes sure that the files of the given names lie below ``root``.
    """

    root: Path
    where: str
    source: str = ""
    names: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    fetch: Callable[[Sequence[str]], None] = _fetch_nothing


def list_directory(root: Path, settings: ReadingSettings, *, declared: CorpusSource | None = None) -> SourceFiles:
    """List the files of a corpus that is a directory of this machine.

    Args:
        root: The directory.
        settings: Which files are read.
        declared: The entry of the setting ``sources``; None for the artifact ``corpus`` alone.

    Raises:
        InputError: There is no such directory.
    """
    where = f"source {declared.name or declared.uri} ({root})" if declared else f"corpus {root}"
    if not root.is_dir():
        raise InputError(f"{where}: there is no such directory")
    source = SourceFiles(root, where, declared.name if declared else "")
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in _walk(root, source.skipped)}
    return _select_files(source, sizes, settings)


@contextmanager
def open_sources(settings: ReadingSettings, corpus: Path | None) -> Iterator[list[SourceFiles]]:
    """List the files of all corpora to read, in the order of ``sources``.

    The artifact ``corpus`` is the first when no entry of ``sources`` stands for it. Files that are fetched may be gone
    after the context.

    Raises:
        InputError: There is no corpus, or one of them does not exist.
        ActionNeeded: One of them refuses access.
        Transient: One of them does not answer.
    """
    declared = list(settings.sources)
    if corpus and declared and not any(entry.uri is None for entry in declared):
        declared.insert(0, CorpusSource(name="corpus"))
    with ExitStack() as stack:
        if not declared:
            if corpus is None:
                raise InputError("there is nothing to read: give corpus, or set sources")
            yield [list_directory(corpus, settings)]
            return
        yield [_open_source(entry, corpus, settings, stack) for entry in declared]


def get_suffix(name: str) -> str:
    """Return the extension in lower case; a dotted name such as ``research.nvidia.com_blog`` has none.

    An extension is at most five letters and digits, with a letter among them, or one of a few longer ones.
    """
    suffix = PurePosixPath(name).suffix.lower()
    letters = suffix[1:]
    if suffix in _LONG_EXTENSIONS:
        return suffix
    return suffix if letters.isalnum() and len(letters) <= 5 and not letters.isdigit() else ""


def _open_source(
    declared: CorpusSource, corpus: Path | None, settings: ReadingSettings, stack: ExitStack
) -> SourceFiles:
    if declared.uri is None:
        if corpus is None:
            raise InputError(f"sources: {declared.name} stands for corpus, which is not given: give it a uri")
        return list_directory(corpus, settings, declared=declared)
    if "://" not in declared.uri:
        return list_directory(Path(declared.uri), settings, declared=declared)
    base = Path(settings.download_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-")))
    root = base / hashlib.sha256(declared.uri.encode()).hexdigest()[:16]
    where = f"source {declared.name} ({declared.uri})" if declared.name else declared.uri
    remote = open_remote(declared.uri, where, root)
    source = SourceFiles(remote.root, where, declared.name, fetch=remote.fetch)
    _select_files(source, remote.sizes, settings)
    _check_size(source, remote, settings)
    return source


def _check_size(source: SourceFiles, remote: Remote, settings: ReadingSettings) -> None:
    """Raise InputError for more than may be fetched; with ``num_files`` not all of it will be."""
    mib = sum(remote.sizes[name] for name in source.names) / 2**20
    if settings.num_files is None and mib > settings.max_download_mib:
        raise InputError(
            f"{source.where} has {mib:,.0f} MiB to fetch, more than max_download_mib ({settings.max_download_mib:,}): "
            f"raise it, or name a folder"
        )


def _select_files(source: SourceFiles, sizes: Mapping[str, int], settings: ReadingSettings) -> SourceFiles:
    """Give ``source`` the names that may be read, in order of their parts; ``sizes`` in bytes are those of all."""
    extensions = settings.extensions if settings.task == "generate" else {RECORDS}
    names: list[str] = []
    folders = {str(folder) for name in sizes for folder in PurePosixPath(name).parents}
    for name, size in sizes.items():
        suffix = get_suffix(name)
        if reason := _reject_name(name) or ("not a regular file" if name in folders else None):
            source.skipped[reason] += 1
            continue
        source.suffixes[suffix or "(none)"] += 1
        if suffix not in extensions:
            source.skipped["other extension"] += 1
        elif size > settings.max_file_mib * 2**20:
            source.skipped[f"larger than {settings.max_file_mib} MiB"] += 1
        else:
            names.append(name)
    source.names = sorted(names, key=lambda name: PurePosixPath(name).parts)
    return source


def _reject_name(name: str) -> str | None:
    """Return why a file of this name is left out. Objects may have names that lead out of a directory."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        return "no file's name"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    if any("\ud800" <= character <= "\udfff" for character in name):  # so Python stands in for bytes that are no text
        return "name is not UTF-8"
    if max(len(part.encode()) for part in parts) > _LONGEST_NAME or len(name.encode()) > _LONGEST_PATH:
        return "name is too long"
    return None


def _walk(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the regular files below ``root``; nothing is opened, and no link is followed."""
    for folder, folders, names in os.walk(root):
        # A link to a folder is listed among the folders.
        for name in [name for name in folders if name.startswith(".") or Path(folder, name).is_symlink()]:
            skipped["hidden" if name.startswith(".") else "link"] += 1
            folders.remove(name)
        for name in names:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if name.startswith("."):
                skipped["hidden"] += 1
            elif stat.S_ISLNK(mode):
                skipped["link"] += 1
            elif not stat.S_ISREG(mode):
                skipped["not a regular file"] += 1
            else:
                yield path
