"""Texts that say the same in nearly the same words, found by MinHash and confirmed by their exact similarity.

Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman & Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from components.core.progress import Progress

PERMUTATIONS = 128
# A pair as similar as the threshold is overlooked less often than this.
_OVERLOOKED = 1e-4
_SHINGLE_WORDS = 3
_CHUNK = 500_000
# Scripts that put no blanks between words: there every character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


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
    shingles = _shingles(texts)
    signatures = _signatures(shingles, what)
    for bucket in _buckets(signatures, threshold):
        for position, one in enumerate(bucket):
            for other in bucket[:position]:
                if clusters.root(one) != clusters.root(other) and _similar(shingles[one], shingles[other], threshold):
                    clusters.join(one, other)


def _shingles(texts: Sequence[str]) -> list[np.ndarray]:
    """For each text the hashes of its three-word sequences: uint64, sorted, each once, one at least."""
    known: dict[str, int] = {}
    weights = np.random.default_rng(1).integers(1, 2**63, _SHINGLE_WORDS, dtype=np.uint64) | np.uint64(1)

    def number(word: str) -> int:
        if word not in known:
            known[word] = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())
        return known[word]

    found = []
    for text in texts:
        words = [number(word) for word in _WORD.findall(text) or [text]]
        words += [0] * (_SHINGLE_WORDS - len(words))
        numbers = np.array(words, dtype=np.uint64)
        last = len(numbers) - _SHINGLE_WORDS + 1
        found.append(np.unique(sum(numbers[i : i + last] * weight for i, weight in enumerate(weights))))
    return found


def _signatures(shingles: Sequence[np.ndarray], what: str) -> np.ndarray:
    """MinHash signatures: uint32 [texts, PERMUTATIONS]."""
    generator = np.random.default_rng(0)
    factors = generator.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = generator.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    signatures = np.empty((len(shingles), PERMUTATIONS), dtype=np.uint32)
    with Progress("looking for near-duplicates", total=len(shingles), unit=what) as progress:
        for first, last in _chunks([len(one) for one in shingles]):
            hashes = np.concatenate(shingles[first:last])
            starts = np.cumsum([0, *(len(one) for one in shingles[first : last - 1])])
            for column, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
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


def _buckets(signatures: np.ndarray, threshold: float) -> Iterator[list[int]]:
    """Groups of texts that agree in one band of their signatures: whoever is similar enough shares one of them."""
    rows = _band_rows(threshold)
    for start in range(0, PERMUTATIONS, rows):
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
        for begin, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            if end - begin > 1:
                yield order[begin:end].tolist()


def _band_rows(threshold: float) -> int:
    """The most rows per band (so the fewest candidates) that overlook a pair at the threshold rarely enough."""
    fitting = [r for r in (1, 2, 4, 8, 16, 32) if (1 - threshold**r) ** (PERMUTATIONS // r) <= _OVERLOOKED]
    return max(fitting, default=1)


def _similar(one: np.ndarray, other: np.ndarray, threshold: float) -> bool:
    """Whether the Jaccard similarity of two sets of hashes is at least ``threshold``."""
    small, large = sorted((len(one), len(other)))
    if small < threshold * large:
        return False
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= threshold * (small + large - common)
