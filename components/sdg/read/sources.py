"""Where documents lie: a directory of this machine, a prefix of a bucket, a data set on the Hugging Face hub.

Names, sizes and extensions are looked at before anything is opened or fetched.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from components.core.errors import InputError
from components.sdg.read.remote import Remote, open_remote
from components.sdg.settings.reading_settings import CorpusSource, ReadingSettings

_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes that file systems take
_LONG_EXTENSIONS = (".parquet", ".safetensors")  # large, on the hub often, and no text
RECORDS = ".jsonl"


def _is_here(_names: Sequence[str]) -> None:
    """Nothing to fetch."""


@dataclass
class Place:
    """The files of one corpus that may be read, by name, and what was left out without a look inside.

    ``fetch`` sees to it that the files of these names lie below ``root``; ``source`` is the name that documents carry.
    """

    root: Path
    where: str
    source: str = ""
    names: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    fetch: Callable[[Sequence[str]], None] = _is_here


def directory(root: Path, settings: ReadingSettings, *, source: CorpusSource | None = None) -> Place:
    """The corpus in a directory of this machine. Raises InputError when there is none."""
    where = f"source {source.name or source.uri} ({root})" if source else f"corpus {root}"
    if not root.is_dir():
        raise InputError(f"{where}: there is no such directory")
    place = Place(root, where, source.name if source else "")
    found = ((path.relative_to(root).as_posix(), path.stat().st_size) for path in _regular_files(root, place.skipped))
    return _sift(place, found, settings)


@contextmanager
def opened(settings: ReadingSettings, corpus: Path | None) -> Iterator[list[Place]]:
    """All places to read, in the order of ``sources``; ``corpus`` is the first when no source stands for it.

    Files that were fetched may be gone afterwards. Raises InputError when there is none, or for one that is not
    there; ActionNeeded and Transient for one that cannot be read.
    """
    sources = list(settings.sources)
    if corpus and sources and not any(source.uri is None for source in sources):
        sources.insert(0, CorpusSource(name="corpus"))
    with ExitStack() as stack:
        if not sources:
            if corpus is None:
                raise InputError("there is nothing to read: give corpus, or set sources")
            yield [directory(corpus, settings)]
            return
        yield [_open(source, corpus, settings, stack) for source in sources]


def suffix_of(name: str) -> str:
    """The extension in lower case; a dotted name such as ``research.nvidia.com_blog`` has none.

    An extension is at most five letters and digits, with a letter among them, or one of a few longer ones.
    """
    suffix = PurePosixPath(name).suffix.lower()
    letters = suffix[1:]
    if suffix in _LONG_EXTENSIONS:
        return suffix
    return suffix if letters.isalnum() and len(letters) <= 5 and not letters.isdigit() else ""


def _open(source: CorpusSource, corpus: Path | None, settings: ReadingSettings, stack: ExitStack) -> Place:
    if source.uri is None:
        if corpus is None:
            raise InputError(f"sources: {source.name} stands for corpus, which is not given: give it a uri")
        return directory(corpus, settings, source=source)
    if "://" not in source.uri:
        return directory(Path(source.uri), settings, source=source)
    base = Path(settings.download_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="corpus-")))
    root = base / hashlib.sha256(source.uri.encode()).hexdigest()[:16]
    where = f"source {source.name} ({source.uri})" if source.name else source.uri
    remote = open_remote(source.uri, where, root)
    place = _sift(Place(remote.root, where, source.name, fetch=remote.fetch), remote.sizes.items(), settings)
    _check_size(place, remote, settings)
    return place


def _check_size(place: Place, remote: Remote, settings: ReadingSettings) -> None:
    """Raise InputError for more than may be fetched; with ``num_files`` not all of it will be."""
    mib = sum(remote.sizes[name] for name in place.names) / 2**20
    if settings.num_files is None and mib > settings.max_download_mib:
        raise InputError(
            f"{place.where} has {mib:,.0f} MiB to fetch, more than max_download_mib ({settings.max_download_mib:,}): "
            f"raise it, or name a folder"
        )


def _sift(place: Place, found: Iterable[tuple[str, int]], settings: ReadingSettings) -> Place:
    """Give ``place`` the names that may be read, in order of their parts."""
    extensions = settings.extensions if settings.task == "generate" else {RECORDS}
    names: list[str] = []
    sizes = dict(found)
    folders = {str(folder) for name in sizes for folder in PurePosixPath(name).parents}
    for name, size in sizes.items():
        suffix = suffix_of(name)
        if reason := _unwanted_name(name) or ("not a regular file" if name in folders else None):
            place.skipped[reason] += 1
            continue
        place.suffixes[suffix or "(none)"] += 1
        if suffix not in extensions:
            place.skipped["other extension"] += 1
        elif size > settings.max_file_mib * 2**20:
            place.skipped[f"larger than {settings.max_file_mib} MiB"] += 1
        else:
            names.append(name)
    place.names = sorted(names, key=lambda name: PurePosixPath(name).parts)
    return place


def _unwanted_name(name: str) -> str | None:
    """Why a file of this name is left out. Objects may have names that lead out of a directory."""
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


def _regular_files(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Regular files below ``root``; nothing is opened, and no link is followed."""
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
