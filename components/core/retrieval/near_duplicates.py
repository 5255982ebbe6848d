"""Texts that say the same in nearly the same words, found one after the other by MinHash and confirmed exactly."""

from __future__ import annotations

import numpy as np

from components.core.retrieval.minhash import FACTORS, OFFSETS, banding, folded, shingles, similar

_BLOCK = 4096  # sequences hashed at once
# Signatures tell similarities to within a few hundredths: worth an exact look from this far below the threshold.
_MARGIN = 0.2


class NearDuplicates:
    """Texts so far; asks of each new one whether it is nearly one of them."""

    def __init__(self, threshold: float, *, words: int) -> None:
        self._threshold, self._words = threshold, words
        self._rows, self._bands = banding(threshold)
        self._count = self._rows * self._bands
        self._shingles: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._holders: dict[int, int | tuple[int, ...]] = {}  # a tuple only where there are several: most have one

    def is_one(self, text: str) -> bool:
        """Whether the Jaccard similarity with an earlier text is at least the threshold; else remember this one.

        It is that of the sets of sequences of ``words`` words.
        """
        own = shingles(folded(text), self._words)
        signature = self._signature(own)
        keys = [hash((band, part.tobytes())) for band, part in enumerate(signature.reshape(self._bands, self._rows))]
        met = sorted({number for key in keys for number in self._held(key)})
        if met:
            alike = (np.stack([self._signatures[number] for number in met]) == signature).mean(axis=1)
            near = (number for number, share in zip(met, alike, strict=True) if share > self._threshold - _MARGIN)
            if any(similar(self._shingles[number], own, self._threshold) for number in near):
                return True
        for key in keys:
            held = self._held(key)
            self._holders[key] = (*held, len(self._shingles)) if held else len(self._shingles)
        self._shingles.append(own)
        self._signatures.append(signature)
        return False

    def _held(self, key: int) -> tuple[int, ...]:
        found = self._holders.get(key, ())
        return found if isinstance(found, tuple) else (found,)

    def _signature(self, own: np.ndarray) -> np.ndarray:
        """As many of the MinHashes as the bands take: uint32 [bands * rows]."""
        least = np.full(self._count, np.iinfo(np.uint32).max, dtype=np.uint32)
        for start in range(0, len(own), _BLOCK):
            hashes = own[start : start + _BLOCK, None] * FACTORS[: self._count] + OFFSETS[: self._count]
            least = np.minimum(least, (hashes >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return least
