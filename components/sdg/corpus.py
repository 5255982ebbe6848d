"""Reads a corpus: regular text files inside one directory, and nothing else."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.core.errors import InputError
from components.core.near_duplicates import NearDuplicates
from components.sdg.component import SdgConfig
from components.sdg.formats import Unreadable, read_text

_log = logging.getLogger(__name__)
_PHRASE_WORDS = 5  # whole documents that share most of their phrases of this length are one


@dataclass(frozen=True)
class Document:
    """A document: its path inside the corpus, with slashes, and its text."""

    source_id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The documents in order of their paths, and how many files were left out, by reason."""

    documents: list[Document]
    skipped: dict[str, int]


def read_corpus(root: Path, config: SdgConfig) -> Corpus:
    """The usable documents below ``root``.

    Hidden files, links, and anything that is no regular file are never opened: a link in a corpus could name a
    secret of the pod, and a FIFO would block for ever. Equal and nearly equal texts are kept once. Raises
    InputError when nothing is usable, with the reasons.
    """
    skipped: Counter[str] = Counter()
    suffixes: Counter[str] = Counter()
    documents: list[Document] = []
    seen: set[str] = set()
    near = NearDuplicates(config.near_duplicate_threshold, words=_PHRASE_WORDS)
    for path in regular_files(root, skipped):
        suffix = _suffix(path.name)
        suffixes[suffix or "(none)"] += 1
        if suffix not in config.extensions:
            skipped["other extension"] += 1
            continue
        if config.num_files is not None and len(documents) >= config.num_files:
            skipped["over num_files"] += 1
            continue
        try:
            text = _read(path, suffix, config)
        except Unreadable as reason:
            skipped[str(reason)] += 1
            _log.warning("left out %s: %s", path.relative_to(root), reason)
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in seen:
            skipped["same text as another file"] += 1
            continue
        seen.add(digest)
        if config.near_duplicate_threshold < 1 and near.is_one(text):
            skipped["nearly the same text as another file"] += 1
            continue
        documents.append(Document(str(PurePosixPath(path.relative_to(root))), text))
    if not documents:
        raise InputError(_nothing(root, config, skipped, suffixes))
    return Corpus(documents, dict(sorted(skipped.items())))


def regular_files(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Regular, visible files below ``root`` in order of their paths; everything else is counted."""
    found = []
    for folder, folders, files in os.walk(root):
        for name in [n for n in folders if n.startswith(".") or (Path(folder) / n).is_symlink()]:
            skipped["hidden" if name.startswith(".") else "link"] += 1
            folders.remove(name)
        for name in files:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if name.startswith("."):
                skipped["hidden"] += 1
            elif stat.S_ISLNK(mode):
                skipped["link"] += 1
            elif not _is_utf8(str(path.relative_to(root))):
                skipped["name is not UTF-8"] += 1
            elif not stat.S_ISREG(mode):
                skipped["not a regular file"] += 1
            else:
                found.append(path)
    yield from sorted(found, key=lambda path: path.relative_to(root).parts)


def _is_utf8(name: str) -> bool:
    """Whether the file's name is text; Python stands bytes that are none in as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _suffix(name: str) -> str:
    """The extension in lower case; a dotted name such as ``research.nvidia.com_blog`` has none.

    An extension is at most five letters and digits, with a letter among them.
    """
    suffix = Path(name).suffix.lower()
    letters = suffix[1:]
    return suffix if letters.isalnum() and len(letters) <= 5 and not letters.isdigit() else ""


def _read(path: Path, suffix: str, config: SdgConfig) -> str:
    """The text of ``path``. Raises Unreadable with the reason why it is left out."""
    text = read_text(path, suffix, config)
    if len(text.strip()) < config.min_text_length:
        raise Unreadable(f"shorter than min_text_length ({config.min_text_length} characters)")
    return text


def _nothing(root: Path, config: SdgConfig, skipped: Counter[str], suffixes: Counter[str]) -> str:
    if not suffixes:
        found = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        left_out = f" that can be read ({found})" if found else ""
        return f"corpus {root} holds no files{left_out}: give a directory with documents"
    if not set(suffixes) & {extension or "(none)" for extension in config.extensions}:
        found = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
        return (
            f"no document in {root} has an extension in {config.file_extensions} (found {found}): "
            f"change file_extensions or corpus"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    return f"no document in {root} can be used ({reasons}): give UTF-8 text files"
