"""Cuts documents into passages: groups of sentences, never longer than a bound."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from components.sdg.records import Chunk

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


def chunk_text(
    text: str, *, sentences: int, max_words: int, overlap: int = 0, fits: Callable[[str], bool] | None = None
) -> list[Chunk]:
    """Cut ``text`` into passages; without overlap every word stands in exactly one of them.

    Args:
        text: A document.
        sentences: Most sentences of a passage.
        max_words: Most words of a passage; longer sentences are cut at a word.
        overlap: Sentences of the passage before that a passage starts with, as far as they fit.
        fits: Must hold for every passage; sentences that do not fit are cut at a word, words anywhere.

    Returns:
        The passages in their order, white space folded.
    """
    chunks: list[Chunk] = []
    window = _Window(sentences, max_words, fits)
    for whole in _iter_sentences(text, max_words):
        for sentence in _cut_to_fit(whole, fits) if fits else (whole,):
            if window.sentences and not window.has_room_for(sentence):
                if window.new_sentences:
                    chunks.append(window.to_chunk(len(chunks) + 1))
                window.drop(len(window.sentences) - overlap)
                while window.sentences and not window.has_room_for(sentence):
                    window.drop(1)
            window.add(sentence)
    if window.new_sentences:
        chunks.append(window.to_chunk(len(chunks) + 1))
    return chunks


class _Window:
    """Consecutive sentences of a document, as words, that will be a passage.

    Attributes:
        sentences: The sentences.
        new_sentences: How many of them, at the end, no passage holds so far.
    """

    def __init__(self, most_sentences: int, max_words: int, fits: Callable[[str], bool] | None) -> None:
        self._most_sentences, self._max_words, self._fits = most_sentences, max_words, fits
        self.sentences: list[list[str]] = []
        self.new_sentences = 0
        self._length = 0
        self._start = 0

    def has_room_for(self, sentence: list[str]) -> bool:
        """Return whether a passage may hold ``sentence`` as well."""
        if len(self.sentences) == self._most_sentences or self._length + _count_length(sentence) > self._max_words:
            return False
        return self._fits is None or self._fits(" ".join(word for part in (*self.sentences, sentence) for word in part))

    def add(self, sentence: list[str]) -> None:
        """Append ``sentence``."""
        self.sentences.append(sentence)
        self.new_sentences += 1
        self._length += _count_length(sentence)

    def drop(self, count: int) -> None:
        """Remove the first ``count`` sentences; not more than there are."""
        for sentence in self.sentences[:count]:
            self._start += len(sentence)
            self._length -= _count_length(sentence)
        del self.sentences[:count]

    def to_chunk(self, number: int) -> Chunk:
        """Return the passage number ``number`` of the document; its sentences are no longer new."""
        self.new_sentences = 0
        words = [word for sentence in self.sentences for word in sentence]
        return Chunk(
            text=" ".join(words),
            chunk_id=number,
            word_count=len(words),
            start=self._start,
            end=self._start + len(words),
            sentence_count=len(self.sentences),
            doc_chunk_index=number,
        )


def count_words(chunks: Sequence[Chunk]) -> int:
    """Return the number of words of all ``chunks``."""
    return sum(chunk.word_count for chunk in chunks)


def split_into_parts(chunks: Sequence[Chunk], max_words: int) -> list[list[Chunk]]:
    """Return ``chunks`` in order, in parts of about one length and at most ``max_words`` words (or one passage)."""
    total = count_words(chunks)
    count = max(1, math.ceil(total / max_words))
    while True:
        parts: list[list[Chunk]] = [[] for _ in range(count)]
        words = 0
        for chunk in chunks:
            parts[min(count - 1, int((words + chunk.word_count / 2) * count / total))].append(chunk)
            words += chunk.word_count
        parts = [part for part in parts if part]
        if all(len(part) == 1 or count_words(part) <= max_words for part in parts):
            return parts
        count += 1


def split_sentences(text: str) -> list[str]:
    """Return the sentences of one paragraph, by punctuation, for languages with and without spaces."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def _iter_sentences(text: str, max_words: int) -> Iterator[list[str]]:
    """Yield sentences as words; one longer than ``max_words`` comes in pieces."""
    for paragraph in _PARAGRAPH.split(text):
        for sentence in split_sentences(paragraph):
            piece: list[str] = []
            for word in sentence.split():
                for part in _cut_word(word, max_words * _CHARACTERS_PER_WORD):
                    if piece and _count_length([*piece, part]) > max_words:
                        yield piece
                        piece = []
                    piece.append(part)
            if piece:
                yield piece


def _cut_to_fit(words: list[str], fits: Callable[[str], bool]) -> Iterator[list[str]]:
    """Yield ``words`` in pieces that fit; a single word that does not fit is cut."""
    while words:
        count = _count_fitting([" ".join(words[: count + 1]) for count in range(len(words))], fits)
        if count:
            yield words[:count]
            words = words[count:]
        else:
            word = words[0]
            characters = max(1, _count_fitting([word[: count + 1] for count in range(len(word))], fits))
            yield [word[:characters]]
            words = [word[characters:], *words[1:]] if word[characters:] else words[1:]


def _count_fitting(growing: list[str], fits: Callable[[str], bool]) -> int:
    """Return how many of the texts ``growing``, each an extension of the one before, fit."""
    if fits(growing[-1]):
        return len(growing)
    low, high = 0, len(growing)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(growing[middle - 1]) else (low, middle)
    return low


def _cut_word(word: str, characters: int) -> Iterator[str]:
    for start in range(0, len(word), characters):
        yield word[start : start + characters]


def _count_length(words: Sequence[str]) -> int:
    """Return the number of words; a run of characters longer than any word counts as several."""
    return sum(1 if len(word) <= _LONGEST_WORD else -(-len(word) // _CHARACTERS_PER_WORD) for word in words)
