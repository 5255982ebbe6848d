"""Finds near-duplicates among texts that come one after the other: MinHash proposes, exact counts decide."""

from __future__ import annotations

import numpy as np

from components.core.retrieval.minhash import FACTORS, OFFSETS, banding, fold, is_similar, shingles

_BLOCK = 4096  # sequences hashed at once
# Signatures tell similarities to within a few hundredths: worth an exact look from this far below the threshold.
_MARGIN = 0.2


class NearDuplicates:
    """The texts so far, which each new text is compared with."""

    def __init__(self, threshold: float, *, words: int) -> None:
        self._threshold, self._words = threshold, words
        self._rows, self._bands = banding(threshold)
        self._count = self._rows * self._bands
        self._shingles: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._numbers_by_key: dict[
            int, int | tuple[int, ...]
        ] = {}  # a tuple only where there are several: most have one

    def is_near_duplicate(self, text: str) -> bool:
        """Return whether the Jaccard similarity with an earlier text is at least the threshold; else remember the text.

        Compared are the sets of sequences of ``words`` words.
        """
        hashes = shingles(fold(text), self._words)
        signature = self._compute_signature(hashes)
        keys = [hash((band, part.tobytes())) for band, part in enumerate(signature.reshape(self._bands, self._rows))]
        candidates = sorted({number for key in keys for number in self._get_numbers(key)})
        if candidates:
            shares = (np.stack([self._signatures[number] for number in candidates]) == signature).mean(axis=1)
            near = (n for n, share in zip(candidates, shares, strict=True) if share > self._threshold - _MARGIN)
            if any(is_similar(self._shingles[number], hashes, self._threshold) for number in near):
                return True
        for key in keys:
            numbers = self._get_numbers(key)
            self._numbers_by_key[key] = (*numbers, len(self._shingles)) if numbers else len(self._shingles)
        self._shingles.append(hashes)
        self._signatures.append(signature)
        return False

    def _get_numbers(self, key: int) -> tuple[int, ...]:
        numbers = self._numbers_by_key.get(key, ())
        return numbers if isinstance(numbers, tuple) else (numbers,)

    def _compute_signature(self, hashes: np.ndarray) -> np.ndarray:
        """Return the first bands × rows MinHash values: uint32 [bands * rows]."""
        signature = np.full(self._count, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(hashes), _BLOCK):
            permuted = hashes[start : start + _BLOCK, None] * FACTORS[: self._count] + OFFSETS[: self._count]
            signature = np.minimum(signature, (permuted >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return signature
