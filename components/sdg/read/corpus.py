"""Reads the texts of corpora, and keeps each text once."""

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
from components.sdg.read.sources import SourceFiles, get_suffix
from components.sdg.settings.reading_settings import ReadingSettings

_log = logging.getLogger(__name__)
_FETCHED_AT_ONCE = 256
_PHRASE_WORDS = 5  # whole documents that share most of their phrases of this length are one


@dataclass(frozen=True)
class Document:
    """A text of the corpus.

    Attributes:
        source_id: Path inside the corpus, with slashes, after the name of the corpus among several.
        text: The whole text.
        source: Name of the corpus among several; empty when there is only one.
    """

    source_id: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class Corpus:
    """Documents in order of their paths, and how many files were left out, by reason."""

    documents: list[Document]
    skipped: dict[str, int]


def read_corpus(sources: Sequence[SourceFiles], settings: ReadingSettings) -> Corpus:
    """Read the usable documents of all ``sources``, in their order; equal and nearly equal texts are kept once.

    Raises:
        InputError: No file of a source is usable; the message has the reasons.
        StageError: What fetching the files raises.
    """
    reader = _Reader(settings)
    for source in sources:
        reader.read(source)
    return Corpus(reader.documents, dict(sorted(reader.skipped.items())))


class _Reader:
    """Collects documents, and counts what is left out."""

    def __init__(self, settings: ReadingSettings) -> None:
        self._settings = settings
        self.documents: list[Document] = []
        self.skipped: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._near = NearDuplicates(settings.near_duplicate_threshold, words=_PHRASE_WORDS)

    def read(self, source: SourceFiles) -> None:
        before = len(self.documents)
        skipped = Counter(source.skipped)
        for start in range(0, len(source.names), _FETCHED_AT_ONCE):
            names = source.names[start : start + _FETCHED_AT_ONCE]
            if not self._is_full(before):
                source.fetch(names)
            for name in names:
                if self._is_full(before):
                    skipped["over num_files"] += 1
                elif reason := self._add(source, name):
                    skipped[reason] += 1
        if len(self.documents) == before:
            raise InputError(_explain_empty(source, self._settings, skipped))
        self.skipped += skipped

    def _is_full(self, before: int) -> bool:
        return self._settings.num_files is not None and len(self.documents) - before >= self._settings.num_files

    def _add(self, source: SourceFiles, name: str) -> str | None:
        """Add the file's text to the documents, or return why it is left out."""
        try:
            text = _read_document(source.root / name, get_suffix(name), self._settings)
        except Unreadable as reason:
            _log.warning("left out %s: %s", name, reason)
            return str(reason)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in self._seen:
            return "same text as another file"
        self._seen.add(digest)
        if self._settings.near_duplicate_threshold < 1 and self._near.is_near_duplicate(text):
            return "nearly the same text as another file"
        source_id = f"{source.source}/{name}" if source.source else name
        self.documents.append(Document(source_id, text, source.source))
        return None


def _read_document(path: Path, suffix: str, settings: ReadingSettings) -> str:
    """Return the text of ``path``. Raises Unreadable with the reason why it is left out."""
    text = read_text(path, suffix, settings)
    if len(text.strip()) < settings.min_text_length:
        raise Unreadable(f"shorter than min_text_length ({settings.min_text_length} characters)")
    return text


def _explain_empty(source: SourceFiles, settings: ReadingSettings, skipped: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common() if count)
    if not source.suffixes:
        left_out = f" that can be read ({reasons})" if reasons else ""
        return f"{source.where} holds no files{left_out}: give a place with documents"
    if not set(source.suffixes) & {extension or "(none)" for extension in settings.extensions}:
        suffixes = ", ".join(f"{count} {suffix}" for suffix, count in source.suffixes.most_common(5))
        return (
            f"no document in {source.where} has an extension in {settings.file_extensions} (found {suffixes}): "
            f"change file_extensions or corpus"
        )
    return f"no document in {source.where} can be used ({reasons}): give UTF-8 text files"
