"""Passages of a document: groups of sentences, never longer than a bound."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_PARAGRAPH = re.compile(r"\n\s*\n+")
# A sentence ends at . ! ? ؟ ۔ (and closing quotes or brackets) before white space and what can start a sentence,
# or at the full stops of Chinese, Japanese and Indic scripts, which no space need follow.
_CLOSE = "[\"'”’)\\]]"
_SENTENCE_END = re.compile(
    rf"(?:(?<=[.!?؟۔])|(?<=[.!?]{_CLOSE})|(?<=[.!?]{_CLOSE}{_CLOSE}))\s+(?=[\"'“‘(\[]*[^\Wa-z_])"
    r"|(?<=[。！？।॥])(?=[^」』）।॥])"
)
# Text without spaces has no words to count: in a run longer than any word, six characters stand for one.
_LONGEST_WORD = 24
_CHARACTERS_PER_WORD = 6


def chunk(
    text: str, *, sentences: int, max_words: int, overlap: int = 0, fits: Callable[[str], bool] | None = None
) -> list[dict[str, Any]]:
    """Passages of ``text`` as the recipe's records: ``sentences`` sentences each, at most ``max_words`` words.

    ``fits``, when given, must hold for every passage, too; longer sentences are cut at a word, longer words anywhere.
    A passage starts with the last ``overlap`` sentences of the one before, as far as they fit. ``start`` and ``end``
    are word offsets in the document, ``end`` excluded. Without overlap every word stands in exactly one passage; white
    space is folded.
    """
    chunks: list[dict[str, Any]] = []
    group: list[list[str]] = []
    start, fresh = 0, 0  # fresh: sentences of the group that no passage holds so far

    def close() -> None:
        nonlocal group, start, fresh
        words = [word for sentence in group for word in sentence]
        if fresh:
            number = len(chunks) + 1
            chunks.append(
                {
                    "text": " ".join(words),
                    "start": start,
                    "end": start + len(words),
                    "sentence_count": len(group),
                    "word_count": len(words),
                    "chunk_id": number,
                    "doc_chunk_index": number,
                }
            )
        shorten(len(group) - overlap)
        fresh = 0

    def shorten(count: int) -> None:
        """Take the first ``count`` sentences out of the group."""
        nonlocal group, start
        start += sum(len(sentence) for sentence in group[:count])
        group = group[count:]

    def too_long(sentence: list[str]) -> bool:
        if len(group) == sentences or _length(group) + _length([sentence]) > max_words:
            return True
        return fits is not None and not fits(" ".join(word for part in (*group, sentence) for word in part))

    for whole in _sentences(text, max_words):
        for sentence in _fitting(whole, fits) if fits else (whole,):
            if group and too_long(sentence):
                close()
                while group and too_long(sentence):
                    shorten(1)
            group.append(sentence)
            fresh += 1
    close()
    return chunks


def words_of(chunks: Sequence[dict[str, Any]]) -> int:
    """Words of all ``chunks``."""
    return sum(one["word_count"] for one in chunks)


def parts(chunks: Sequence[dict[str, Any]], max_words: int) -> list[list[dict[str, Any]]]:
    """``chunks`` in order, in parts of about the same length and at most ``max_words`` words (or one passage)."""
    total = words_of(chunks)
    count = max(1, math.ceil(total / max_words))
    while True:
        found: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        words = 0
        for one in chunks:
            found[min(count - 1, int((words + one["word_count"] / 2) * count / total))].append(one)
            words += one["word_count"]
        found = [part for part in found if part]
        if all(len(part) == 1 or words_of(part) <= max_words for part in found):
            return found
        count += 1


def split_sentences(text: str) -> list[str]:
    """Sentences of one paragraph, by punctuation, for languages with and without spaces."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def _sentences(text: str, max_words: int) -> Iterator[list[str]]:
    """Sentences as words; one longer than ``max_words`` comes in pieces."""
    for paragraph in _PARAGRAPH.split(text):
        for sentence in split_sentences(paragraph):
            piece: list[str] = []
            for word in sentence.split():
                for part in _pieces(word, max_words * _CHARACTERS_PER_WORD):
                    if piece and _length([[*piece, part]]) > max_words:
                        yield piece
                        piece = []
                    piece.append(part)
            if piece:
                yield piece


def _fitting(words: list[str], fits: Callable[[str], bool]) -> Iterator[list[str]]:
    """``words`` in pieces that fit; a single word that does not is cut."""
    while words:
        count = _longest([" ".join(words[: count + 1]) for count in range(len(words))], fits)
        if count:
            yield words[:count]
            words = words[count:]
        else:
            word = words[0]
            characters = max(1, _longest([word[: count + 1] for count in range(len(word))], fits))
            yield [word[:characters]]
            words = [word[characters:], *words[1:]] if word[characters:] else words[1:]


def _longest(growing: list[str], fits: Callable[[str], bool]) -> int:
    """How many of the texts ``growing``, each an extension of the one before, fit."""
    if fits(growing[-1]):
        return len(growing)
    low, high = 0, len(growing)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(growing[middle - 1]) else (low, middle)
    return low


def _pieces(word: str, characters: int) -> Iterator[str]:
    for start in range(0, len(word), characters):
        yield word[start : start + characters]


def _length(sentences: list[list[str]]) -> int:
    """Words; a run of characters longer than any word counts as several."""
    return sum(
        1 if len(word) <= _LONGEST_WORD else -(-len(word) // _CHARACTERS_PER_WORD)
        for sentence in sentences
        for word in sentence
    )
