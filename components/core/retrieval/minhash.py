"""Similarity of texts: their sets of word sequences, and MinHash signatures that estimate it for many texts at once.

Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman & Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

PERMUTATIONS = 128
# A pair as similar as the threshold is overlooked less often than this.
_OVERLOOKED = 1e-4
_CHUNK = 500_000  # sequences hashed at once
# Scripts that put no blanks between words: there every character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_random = np.random.default_rng(0)
FACTORS = _random.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
OFFSETS = _random.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def fold(text: str) -> str:
    """Return the same text for all that differ only in case, white space and the encoding of their characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, words: int) -> np.ndarray:
    """Return hashes of the sequences of ``words`` words of a folded text: uint64, sorted, unique, not empty."""
    numbers = np.array([_hash(word) for word in _WORD.findall(text) or [text]], dtype=np.uint64)
    length = min(words, len(numbers))
    hashed = np.zeros(len(numbers) - length + 1, dtype=np.uint64)
    for position in range(length):
        hashed = hashed * _GOLDEN + numbers[position : position + len(hashed)]
    return np.unique(hashed)


@lru_cache(maxsize=200_000)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())


def minhash_signatures(sets: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yield the MinHash signatures of sets of hashes (uint64 each), some sets at a time: uint32 [sets, count]."""
    chunk: list[np.ndarray] = []
    total = 0
    for hashes in sets:
        chunk.append(hashes)
        total += len(hashes)
        if total >= _CHUNK:
            yield _compute_signatures(chunk, count)
            chunk, total = [], 0
    if chunk:
        yield _compute_signatures(chunk, count)


def _compute_signatures(sets: Sequence[np.ndarray], count: int) -> np.ndarray:
    signatures = np.empty((len(sets), count), dtype=np.uint32)
    hashes = np.concatenate(sets)
    starts = np.cumsum([0, *(len(some) for some in sets[:-1])])
    for column, (factor, offset) in enumerate(zip(FACTORS[:count], OFFSETS[:count], strict=True)):
        permuted = ((hashes * factor + offset) >> np.uint64(32)).astype(np.uint32)
        signatures[:, column] = np.minimum.reduceat(permuted, starts)
    return signatures


def banding(threshold: float) -> tuple[int, int]:
    """Return rows per band and number of bands.

    The rows are the most, for the fewest candidates, that overlook a pair as similar as ``threshold`` rarely enough.
    """
    for rows in (32, 16, 8, 4, 2):
        missed = 1 - threshold**rows
        bands = math.ceil(math.log(_OVERLOOKED) / math.log(missed)) if missed > 0 else 1
        if bands * rows <= PERMUTATIONS:
            return rows, bands
    return 1, PERMUTATIONS


def is_similar(one: np.ndarray, other: np.ndarray, threshold: float) -> bool:
    """Return whether the Jaccard similarity of two sets of hashes (sorted, unique) is at least ``threshold``."""
    small, large = sorted((len(one), len(other)))
    if small < threshold * large:
        return False
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= threshold * (small + large - common)
