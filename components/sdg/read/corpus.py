"""Reads corpora: the texts of their files, each once."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from components.core.retrieval.near_duplicates import NearDuplicates
from components.sdg.read.formats import Unreadable, read_text
from components.sdg.read.sources import Place, suffix_of
from components.sdg.settings.reading_settings import ReadingSettings

_log = logging.getLogger(__name__)
_FETCHED_AT_ONCE = 256
_PHRASE_WORDS = 5  # whole documents that share most of their phrases of this length are one


@dataclass(frozen=True)
class Document:
    """A document: its path inside the corpus, with slashes, its text, and the name of the corpus among several."""

    source_id: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class Corpus:
    """The documents in order of their paths, and how many files were left out, by reason."""

    documents: list[Document]
    skipped: dict[str, int]


def read_corpus(places: Sequence[Place], settings: ReadingSettings) -> Corpus:
    """The usable documents of all ``places``, in their order.

    Equal and nearly equal texts are kept once. Raises InputError when nothing of a place is usable, with the reasons,
    and what fetching raises.
    """
    reader = _Reader(settings)
    for place in places:
        reader.read(place)
    return Corpus(reader.documents, dict(sorted(reader.skipped.items())))


class _Reader:
    """Documents so far, and what was left out."""

    def __init__(self, settings: ReadingSettings) -> None:
        self._settings = settings
        self.documents: list[Document] = []
        self.skipped: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._near = NearDuplicates(settings.near_duplicate_threshold, words=_PHRASE_WORDS)

    def read(self, place: Place) -> None:
        before = len(self.documents)
        skipped = Counter(place.skipped)
        for start in range(0, len(place.names), _FETCHED_AT_ONCE):
            names = place.names[start : start + _FETCHED_AT_ONCE]
            if not self._is_full(before):
                place.fetch(names)
            for name in names:
                if self._is_full(before):
                    skipped["over num_files"] += 1
                elif reason := self._add(place, name):
                    skipped[reason] += 1
        if len(self.documents) == before:
            raise InputError(_nothing(place, self._settings, skipped))
        self.skipped += skipped

    def _is_full(self, before: int) -> bool:
        return self._settings.num_files is not None and len(self.documents) - before >= self._settings.num_files

    def _add(self, place: Place, name: str) -> str | None:
        """Take the file in, or say why it is left out."""
        try:
            text = _read(place.root / name, suffix_of(name), self._settings)
        except Unreadable as reason:
            _log.warning("left out %s: %s", name, reason)
            return str(reason)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._seen:
            return "same text as another file"
        self._seen.add(digest)
        if self._settings.near_duplicate_threshold < 1 and self._near.is_one(text):
            return "nearly the same text as another file"
        source_id = f"{place.source}/{name}" if place.source else name
        self.documents.append(Document(source_id, text, place.source))
        return None


def _read(path: Path, suffix: str, settings: ReadingSettings) -> str:
    """The text of ``path``. Raises Unreadable with the reason why it is left out."""
    text = read_text(path, suffix, settings)
    if len(text.strip()) < settings.min_text_length:
        raise Unreadable(f"shorter than min_text_length ({settings.min_text_length} characters)")
    return text


def _nothing(place: Place, settings: ReadingSettings, skipped: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common() if count)
    if not place.suffixes:
        left_out = f" that can be read ({reasons})" if reasons else ""
        return f"{place.where} holds no files{left_out}: give a place with documents"
    if not set(place.suffixes) & {extension or "(none)" for extension in settings.extensions}:
        found = ", ".join(f"{count} {suffix}" for suffix, count in place.suffixes.most_common(5))
        return (
            f"no document in {place.where} has an extension in {settings.file_extensions} (found {found}): "
            f"change file_extensions or corpus"
        )
    return f"no document in {place.where} can be used ({reasons}): give UTF-8 text files"
