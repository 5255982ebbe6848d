"""Passages of a document: groups of sentences, never longer than a bound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_PARAGRAPH = re.compile(r"\n\s*\n+")
# A sentence ends at . ! ? (and closing quotes or brackets) before white space and what can start a sentence,
# or at the full stops of Chinese and Japanese, which no space follows.
_CLOSE = "[\"'”’)\\]]"
_SENTENCE_END = re.compile(
    rf"(?:(?<=[.!?])|(?<=[.!?]{_CLOSE})|(?<=[.!?]{_CLOSE}{_CLOSE}))\s+(?=[\"'“‘(\[]*[^\Wa-z_])"
    r"|(?<=[。！？])(?=[^」』）])"
)
# Text without spaces has no words to count: in a run longer than any word, six characters stand for one.
_LONGEST_WORD = 24
_CHARACTERS_PER_WORD = 6


def chunk(text: str, *, sentences: int, max_words: int) -> list[dict[str, Any]]:
    """Passages of ``text`` as the recipe's records: ``sentences`` sentences each, at most ``max_words`` words.

    ``start`` and ``end`` are word offsets in the document, ``end`` excluded. Every word stands in exactly one
    passage; white space is folded.
    """
    chunks: list[dict[str, Any]] = []
    group: list[list[str]] = []
    start = 0

    def close() -> None:
        nonlocal group, start
        words = [word for sentence in group for word in sentence]
        if words:
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
            start += len(words)
        group = []

    for sentence in _sentences(text, max_words):
        if len(group) == sentences or _length(group) + _length([sentence]) > max_words:
            close()
        group.append(sentence)
    close()
    return chunks


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
