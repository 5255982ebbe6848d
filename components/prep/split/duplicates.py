"""Clusters of texts that say the same in nearly the same words: MinHash brings them together, exact counts decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from components.core.progress import Progress
from components.core.retrieval.minhash import banding, fold, is_similar, minhash_signatures, shingles
from components.prep.split.connected import label_components

_WORDS = 3
# Larger buckets are compared by matrix products, so many pairs at once.
_SMALL_BUCKET = 64
_PAIRS_AT_ONCE = 2**22
# Sequences in this share of a bucket's texts are columns of a dense matrix, the others of a sparse one.
_FREQUENT = 1 / 32
# Sets of sequences kept for other buckets; a text of 1 kB has some 160 sequences of 8 bytes.
_CACHED_SETS = 100_000
# Places of similar texts, as links: int64 [links] twice.
Links = tuple[np.ndarray, np.ndarray]


def cluster_duplicates(texts: Iterable[str], threshold: float | None, label: str = "texts") -> dict[str, int]:
    """Return a number for each text, the same for duplicates and for texts that are linked through duplicates.

    Duplicates are texts that are equal when folded (``fold``), or whose sets of three-word sequences have a Jaccard
    similarity of at least ``threshold``; None counts equal ones only. Neither order nor process changes the clusters.
    ``label`` names the texts in the progress.
    """
    by_fold: dict[bytes, list[str]] = {}
    for text in sorted(set(texts)):
        # A digest: the folded text is as long as the text.
        digest = hashlib.blake2b(fold(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        by_fold.setdefault(digest, []).append(text)
    labels = np.arange(len(by_fold))
    if threshold is not None and len(by_fold) > 1:
        labels = _Clustering([equal[0] for equal in by_fold.values()], threshold).run(label)
    return {text: number for number, equal in zip(labels.tolist(), by_fold.values(), strict=True) for text in equal}


class _Clustering:
    """Joins those of ``texts``, all different when folded, whose similarity is at least ``threshold``.

    Similar texts agree in one band of their signatures at least. No set of sequences outlives its use: of 1 M texts
    they would take more memory than the texts.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self._texts, self._threshold = texts, threshold
        # The lowest number that each text is known to be similar to, perhaps through others.
        self._labels = np.arange(len(texts))
        self._sets: dict[int, np.ndarray] = {}

    def run(self, label: str) -> np.ndarray:
        """Return the cluster of each text, named by its lowest number: int64 [texts]."""
        keys = self._compute_band_keys(label)
        numbers = np.arange(len(self._texts))
        with Progress(f"comparing similar {label}", total=len(keys), unit="rounds") as progress:
            for band in keys:
                links = [(numbers, self._labels)]
                for members in _iterate_buckets(band):
                    links.append(self._link_bucket(members))
                    progress.add(0)
                first, second = (np.concatenate(ends) for ends in zip(*links, strict=True))
                self._labels = label_components(len(numbers), first, second)
                progress.add()
        return self._labels

    def _compute_band_keys(self, label: str) -> np.ndarray:
        """Return a hash of each band of each text's signature: uint64 [bands, texts].

        Hashes that are equal by chance cost one more comparison.
        """
        rows, bands = banding(self._threshold)
        factors = np.random.default_rng(1).integers(0, 2**63, rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        keys = np.empty((bands, len(self._texts)), dtype=np.uint64)
        done = 0
        with Progress("looking for near-duplicates", total=len(self._texts), unit=label) as progress:
            for signatures in minhash_signatures((_word_sequences(text) for text in self._texts), rows * bands):
                by_band = signatures.reshape(len(signatures), bands, rows).astype(np.uint64)
                keys[:, done : done + len(signatures)] = (by_band * factors).sum(axis=2, dtype=np.uint64).T
                progress.add(len(signatures))
                done += len(signatures)
        return keys

    def _link_bucket(self, members: np.ndarray) -> Links:
        """Return links that connect the similar ones of ``members``, which agree in a band."""
        labels = self._labels[members]
        if (labels == labels[0]).all():
            return members[:0], members[:0]
        sets = self._get_sets(members)
        if len(members) <= _SMALL_BUCKET:
            one, other = _compare_one_by_one(sets, self._threshold)
            return members[one], members[other]
        # All pairs of a large bucket would be too many links: a label for each member says the same.
        places = np.arange(len(members))
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        lowest = first[inverse]
        for one, other in _compare_in_blocks(sets, self._threshold):
            lowest = label_components(len(members), np.append(places, one), np.append(lowest, other))
            if not lowest.any():
                break
        return members, members[lowest]

    def _get_sets(self, members: np.ndarray) -> list[np.ndarray]:
        if len(self._sets) > _CACHED_SETS:
            self._sets.clear()
        for number in members.tolist():
            if number not in self._sets:
                self._sets[number] = _word_sequences(self._texts[number])
        return [self._sets[number] for number in members.tolist()]


def _word_sequences(text: str) -> np.ndarray:
    return shingles(fold(text), _WORDS)


def _compare_one_by_one(sets: Sequence[np.ndarray], threshold: float) -> Links:
    """Return the places of all similar pairs."""
    pairs = [(i, j) for i in range(len(sets)) for j in range(i) if is_similar(sets[i], sets[j], threshold)]
    links = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return links[:, 0], links[:, 1]


def _compare_in_blocks(sets: Sequence[np.ndarray], threshold: float) -> Iterator[Links]:
    """Yield the places of similar pairs, some rows at a time: boilerplate brings thousands of texts into one bucket."""
    sizes = np.array([len(sequences) for sequences in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    _, columns, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    is_frequent = counts >= max(2, _FREQUENT * len(sets))
    frequent = is_frequent[columns]
    dense = np.zeros((len(sets), int(is_frequent.sum())), dtype=np.float32)
    dense[rows[frequent], (np.cumsum(is_frequent) - 1)[columns[frequent]]] = 1
    # A sequence of one set only is common to no two.
    rare = ~frequent & (counts[columns] > 1)
    ones = np.ones(int(rare.sum()), dtype=np.float32)
    sparse = csr_array((ones, (rows[rare], columns[rare])), shape=(len(sets), len(counts)))
    transposed = sparse.T.tocsr()
    height = max(1, _PAIRS_AT_ONCE // len(sets))
    for start in range(0, len(sets), height):
        block = slice(start, start + height)
        common = (dense[block] @ dense.T + (sparse[block] @ transposed).toarray()).astype(np.int64)
        similar = common >= threshold * (sizes[block, None] + sizes - common)
        one, other = np.nonzero(similar)
        yield one + start, other


def _iterate_buckets(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the places of each key that occurs several times: int64 [members], ascending."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    begins = np.append(0, ends[:-1])
    several = ends - begins > 1
    for begin, end in zip(begins[several], ends[several], strict=True):
        yield order[begin:end]
