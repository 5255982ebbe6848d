"""Finds documents that are nearly the same text, before anything is paid for them.

MinHash of five-word phrases, banded so that likely pairs meet (Broder 1997; Leskovec, Rajaraman, Ullman, chapter 3);
pairs that meet are compared exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from functools import lru_cache

import numpy as np

# Chinese and Japanese put no blanks between words: there each character counts as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_PHRASE_WORDS = 5
_BANDS, _ROWS = 16, 4  # pairs more alike than about 0.5 meet
_random = np.random.default_rng(0)
_FACTORS = _random.integers(1, 2**63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64)
_BLOCK = 65_536  # phrases hashed at once
# Signatures tell shares to within a few hundredths: worth an exact look from this far below the threshold.
_MARGIN = 0.2


class NearDuplicates:
    """Texts so far; asks of each new one whether it is nearly one of them."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._phrases: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def is_one(self, text: str) -> bool:
        """Whether an earlier text shares more than the threshold of its phrases with ``text``; else remember it.

        The share is Jaccard's: phrases in both over phrases in either.
        """
        phrases = _phrases(text)
        signature = _signature(phrases)
        keys = [(band, signature[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]
        met = sorted({number for key in keys for number in self._bands.get(key, ())})
        if met:
            alike = (np.stack([self._signatures[number] for number in met]) == signature).mean(axis=1)
            for number, share in zip(met, alike, strict=True):
                if share > self._threshold - _MARGIN and _jaccard(self._phrases[number], phrases) > self._threshold:
                    return True
        for key in keys:
            self._bands[key].append(len(self._phrases))
        self._phrases.append(phrases)
        self._signatures.append(signature)
        return False


def _phrases(text: str) -> np.ndarray:
    """Hashes of the different phrases: uint64, sorted; at least one."""
    words = np.array([_hash(word) for word in _WORD.findall(text.lower())] or [0], dtype=np.uint64)
    length = min(_PHRASE_WORDS, len(words))
    count = len(words) - length + 1
    hashed = np.zeros(count, dtype=np.uint64)
    for position in range(length):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + words[position : position + count]
    return np.unique(hashed)


@lru_cache(maxsize=200_000)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _signature(phrases: np.ndarray) -> np.ndarray:
    """The least hash of the phrases under each of the hash functions: uint32 [_BANDS * _ROWS]."""
    least = np.full(len(_FACTORS), np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(phrases), _BLOCK):
        mixed = phrases[start : start + _BLOCK, None] * _FACTORS + _OFFSETS
        least = np.minimum(least, (mixed >> np.uint64(32)).astype(np.uint32).min(axis=0))
    return least


def _jaccard(left: np.ndarray, right: np.ndarray) -> float:
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)
