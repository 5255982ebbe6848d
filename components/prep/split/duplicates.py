"""Clusters of texts that say the same in nearly the same words: MinHash brings them together, exact counts decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from components.core.progress import Progress
from components.core.retrieval.minhash import banding, folded, shingles, signatures, similar

_WORDS = 3
# Larger buckets are compared by matrix products, so many rows at once.
_FEW = 64
_BLOCK = 512
# Sequences in this share of a bucket's texts are columns of a dense matrix, the others of a sparse one.
_FREQUENT = 1 / 32
# Sets of sequences kept for other buckets; a text of 1 kB has some 160 sequences of 8 bytes.
_KEPT_SETS = 100_000


def duplicate_clusters(texts: Iterable[str], threshold: float | None, what: str = "texts") -> dict[str, int]:
    """A number for each text, the same for duplicates and for what is linked through them.

    Duplicates are texts that are equal when ``folded``, or whose sets of three-word sequences have a Jaccard
    similarity of at least ``threshold`` (None: only equal ones). Neither order nor process changes who is in a
    cluster. ``what`` the texts are is shown with the progress.
    """
    by_fold: dict[bytes, list[str]] = {}
    for text in sorted(set(texts)):
        # A digest: the folded text is as long as the text.
        digest = hashlib.blake2b(folded(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        by_fold.setdefault(digest, []).append(text)
    clusters = _Clusters(len(by_fold))
    if threshold is not None and len(by_fold) > 1:
        _Search([equal[0] for equal in by_fold.values()], threshold, clusters).run(what)
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


class _Search:
    """Joins those of ``texts``, all different when folded, whose similarity is at least ``threshold``.

    Who is similar enough agrees in one band of the signatures at least. No set of sequences outlives its use: of 1 M
    texts they would take more memory than the texts.
    """

    def __init__(self, texts: Sequence[str], threshold: float, clusters: _Clusters) -> None:
        self._texts, self._threshold, self._clusters = texts, threshold, clusters
        self._sets: dict[int, np.ndarray] = {}

    def run(self, what: str) -> None:
        keys = self._keys(what)
        with Progress(f"comparing similar {what}", total=len(keys), unit="rounds") as progress:
            for of_band in keys:
                for members in _buckets(of_band):
                    self._join(members, progress)
                progress.add()

    def _keys(self, what: str) -> np.ndarray:
        """A hash of each band of each text's signature: uint64 [bands, texts]. Equal by chance: one more comparison."""
        rows, bands = banding(self._threshold)
        factors = np.random.default_rng(1).integers(0, 2**63, rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        keys = np.empty((bands, len(self._texts)), dtype=np.uint64)
        done = 0
        with Progress("looking for near-duplicates", total=len(self._texts), unit=what) as progress:
            for some in signatures((_sequences(text) for text in self._texts), rows * bands):
                by_band = some.reshape(len(some), bands, rows).astype(np.uint64)
                keys[:, done : done + len(some)] = (by_band * factors).sum(axis=2, dtype=np.uint64).T
                progress.add(len(some))
                done += len(some)
        return keys

    def _join(self, members: list[int], progress: Progress) -> None:
        """Join the similar ones of ``members``, who agree in a band."""
        roots = np.array([self._clusters.root(number) for number in members])
        if (roots == roots[0]).all():
            return
        if len(self._sets) > _KEPT_SETS:
            self._sets.clear()
        for number in members:
            if number not in self._sets:
                self._sets[number] = _sequences(self._texts[number])
        compare = _one_by_one if len(members) <= _FEW else _all_at_once
        for place, alike in compare([self._sets[number] for number in members], self._threshold):
            joined = np.unique(roots[alike[roots[alike] != roots[place]]])
            if len(joined):
                for other in joined.tolist():
                    self._clusters.join(int(roots[place]), other)
                joined = np.append(joined, roots[place])
                roots[np.isin(roots, joined)] = joined.min()
                if (roots == roots[0]).all():
                    return
            progress.add(0)


def _sequences(text: str) -> np.ndarray:
    return shingles(folded(text), _WORDS)


def _one_by_one(sets: Sequence[np.ndarray], threshold: float) -> Iterator[tuple[int, np.ndarray]]:
    """Place of each set and places of the earlier ones that are similar to it."""
    for place, one in enumerate(sets):
        yield place, np.array([n for n in range(place) if similar(one, sets[n], threshold)], dtype=np.int64)


def _all_at_once(sets: Sequence[np.ndarray], threshold: float) -> Iterator[tuple[int, np.ndarray]]:
    """As ``_one_by_one``, with later ones instead: boilerplate brings thousands of texts into one bucket."""
    sizes = np.array([len(one) for one in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    _, columns, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    frequent = counts >= max(2, _FREQUENT * len(sets))
    often = frequent[columns]
    dense = np.zeros((len(sets), int(frequent.sum())), dtype=np.float32)
    dense[rows[often], (np.cumsum(frequent) - 1)[columns[often]]] = 1
    # What stands in one set only is common to none.
    seldom = ~often & (counts[columns] > 1)
    ones = np.ones(int(seldom.sum()), dtype=np.float32)
    sparse = csr_array((ones, (rows[seldom], columns[seldom])), shape=(len(sets), len(counts)))
    across = sparse.T.tocsr()
    for start in range(0, len(sets), _BLOCK):
        block = slice(start, start + _BLOCK)
        common = (dense[block] @ dense.T + (sparse[block] @ across).toarray()).astype(np.int64)
        alike = common >= threshold * (sizes[block, None] + sizes - common)
        for place in range(start, min(start + _BLOCK, len(sets))):
            yield place, np.flatnonzero(alike[place - start, place + 1 :]) + place + 1


def _buckets(keys: np.ndarray) -> Iterator[list[int]]:
    """The places of each key that several have."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    begins = np.append(0, ends[:-1])
    several = ends - begins > 1
    for begin, end in zip(begins[several], ends[several], strict=True):
        yield order[begin:end].tolist()
