"""Texts that say the same in nearly the same words, found by MinHash and confirmed by their exact similarity.

Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman & Ullman, "Mining of
Massive Datasets", chapter 3. ``duplicate_clusters`` takes all texts at once, ``NearDuplicates`` one after the other.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from components.core.progress import Progress

PERMUTATIONS = 128
# A pair as similar as the threshold is overlooked less often than this.
_OVERLOOKED = 1e-4
_CLUSTERED_WORDS = 3
_CHUNK = 500_000  # sequences hashed at once
_BLOCK = 4096  # the same, of one text
# Signatures tell similarities to within a few hundredths: worth an exact look from this far below the threshold.
_MARGIN = 0.2
# Scripts that put no blanks between words: there every character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_random = np.random.default_rng(0)
_FACTORS = _random.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)


def folded(text: str) -> str:
    """Equal for texts that differ only in case, white space and the encoding of their characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def duplicate_clusters(texts: Iterable[str], threshold: float | None, what: str = "texts") -> dict[str, int]:
    """A number for each text, the same for duplicates and for what is linked through them.

    Duplicates are texts that are equal when ``folded``, or whose sets of three-word sequences have a Jaccard
    similarity of at least ``threshold`` (None: only equal ones). Neither order nor process changes who is in a
    cluster. ``what`` the texts are is shown with the progress.
    """
    by_fold: dict[str, list[str]] = {}
    for text in sorted(set(texts)):
        by_fold.setdefault(folded(text), []).append(text)
    clusters = _Clusters(len(by_fold))
    if threshold is not None and len(by_fold) > 1:
        _join_similar(clusters, list(by_fold), threshold, what)
    return {text: clusters.root(number) for number, equal in enumerate(by_fold.values()) for text in equal}


class NearDuplicates:
    """Texts so far; asks of each new one whether it is nearly one of them."""

    def __init__(self, threshold: float, *, words: int) -> None:
        self._threshold, self._words = threshold, words
        self._rows, self._bands = _banding(threshold)
        self._count = self._rows * self._bands
        self._shingles: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._holders: dict[int, int | tuple[int, ...]] = {}  # a tuple only where there are several: most have one

    def is_one(self, text: str) -> bool:
        """Whether the Jaccard similarity with an earlier text is at least the threshold; else remember this one.

        It is that of the sets of sequences of ``words`` words.
        """
        shingles = _shingles(folded(text), self._words)
        signature = self._signature(shingles)
        keys = [hash((band, part.tobytes())) for band, part in enumerate(signature.reshape(self._bands, self._rows))]
        met = sorted({number for key in keys for number in self._held(key)})
        if met:
            alike = (np.stack([self._signatures[number] for number in met]) == signature).mean(axis=1)
            near = (number for number, share in zip(met, alike, strict=True) if share > self._threshold - _MARGIN)
            if any(_similar(self._shingles[number], shingles, self._threshold) for number in near):
                return True
        for key in keys:
            held = self._held(key)
            self._holders[key] = (*held, len(self._shingles)) if held else len(self._shingles)
        self._shingles.append(shingles)
        self._signatures.append(signature)
        return False

    def _held(self, key: int) -> tuple[int, ...]:
        found = self._holders.get(key, ())
        return found if isinstance(found, tuple) else (found,)

    def _signature(self, shingles: np.ndarray) -> np.ndarray:
        """As many of the MinHashes as the bands take: uint32 [bands * rows]."""
        least = np.full(self._count, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(shingles), _BLOCK):
            hashes = shingles[start : start + _BLOCK, None] * _FACTORS[: self._count] + _OFFSETS[: self._count]
            least = np.minimum(least, (hashes >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return least


class _Clusters:
    """Union-find; a cluster's root is its lowest number."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self._parent[high] = low


def _join_similar(clusters: _Clusters, texts: Sequence[str], threshold: float, what: str) -> None:
    """Join texts (folded, all different) whose similarity is at least ``threshold``."""
    shingles = [_shingles(text, _CLUSTERED_WORDS) for text in texts]
    rows, bands = _banding(threshold)
    signatures = _signatures(shingles, rows * bands, what)
    for bucket in _buckets(signatures, rows):
        for position, one in enumerate(bucket):
            for other in bucket[:position]:
                if clusters.root(one) != clusters.root(other) and _similar(shingles[one], shingles[other], threshold):
                    clusters.join(one, other)


def _shingles(text: str, words: int) -> np.ndarray:
    """Hashes of the sequences of ``words`` words of a folded text: uint64, sorted, each once, one at least."""
    numbers = np.array([_hash(word) for word in _WORD.findall(text) or [text]], dtype=np.uint64)
    length = min(words, len(numbers))
    hashed = np.zeros(len(numbers) - length + 1, dtype=np.uint64)
    for position in range(length):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + numbers[position : position + len(hashed)]
    return np.unique(hashed)


@lru_cache(maxsize=200_000)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())


def _signatures(shingles: Sequence[np.ndarray], count: int, what: str) -> np.ndarray:
    """MinHash signatures: uint32 [texts, count]."""
    signatures = np.empty((len(shingles), count), dtype=np.uint32)
    with Progress("looking for near-duplicates", total=len(shingles), unit=what) as progress:
        for first, last in _chunks([len(one) for one in shingles]):
            hashes = np.concatenate(shingles[first:last])
            starts = np.cumsum([0, *(len(one) for one in shingles[first : last - 1])])
            for column, (factor, offset) in enumerate(zip(_FACTORS[:count], _OFFSETS[:count], strict=True)):
                mixed = (hashes * factor + offset) >> np.uint64(32)
                signatures[first:last, column] = np.minimum.reduceat(mixed, starts)
            progress.add(last - first)
    return signatures


def _chunks(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of texts with about ``_CHUNK`` shingles each."""
    first = total = 0
    for number, size in enumerate(sizes):
        total += size
        if total >= _CHUNK:
            yield first, number + 1
            first, total = number + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


def _buckets(signatures: np.ndarray, rows: int) -> Iterator[list[int]]:
    """Groups of texts that agree in one band of their signatures: whoever is similar enough shares one of them."""
    for start in range(0, signatures.shape[1], rows):
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
        for begin, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            if end - begin > 1:
                yield order[begin:end].tolist()


def _banding(threshold: float) -> tuple[int, int]:
    """Rows in a band, the most (so the fewest candidates) that overlook a pair rarely enough, and how many bands."""
    for rows in (32, 16, 8, 4, 2):
        missed = 1 - threshold**rows
        bands = math.ceil(math.log(_OVERLOOKED) / math.log(missed)) if missed > 0 else 1
        if bands * rows <= PERMUTATIONS:
            return rows, bands
    return 1, PERMUTATIONS


def _similar(one: np.ndarray, other: np.ndarray, threshold: float) -> bool:
    """Whether the Jaccard similarity of two sets of hashes is at least ``threshold``."""
    small, large = sorted((len(one), len(other)))
    if small < threshold * large:
        return False
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= threshold * (small + large - common)
