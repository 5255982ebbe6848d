"""How close served or exported vectors must be to the checkpoint's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Limits:
    """Lowest cosines that pass, over all probes: their mean, first percentile and minimum.

    ``repeat`` holds between two answers for the same text, for instance in batches of different sizes.
    """

    mean: float
    p1: float
    minimum: float
    repeat: float

    def __str__(self) -> str:
        return f"mean >= {self.mean}, p1 >= {self.p1}, min >= {self.minimum}"


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(mean=0.9999, p1=0.9995, minimum=0.999, repeat=0.99999),
    "fp16": Limits(mean=0.999, p1=0.997, minimum=0.99, repeat=0.999),
    "bf16": Limits(mean=0.999, p1=0.997, minimum=0.99, repeat=0.999),
}
NORM_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}


@dataclass(frozen=True)
class Closeness:
    """Cosines of rows that should be equal, summed up."""

    mean: float
    p1: float
    minimum: float

    def within(self, limits: Limits) -> bool:
        """Whether all three figures reach ``limits``; NaN never does."""
        return self.mean >= limits.mean and self.p1 >= limits.p1 and self.minimum >= limits.minimum

    def figures(self) -> dict[str, float]:
        return {"mean": round(self.mean, 7), "p1": round(self.p1, 7), "min": round(self.minimum, 7)}


def closeness(found: np.ndarray, expected: np.ndarray) -> Closeness:
    """Of two float arrays [rows, dimension], row by row."""
    cosines = row_cosines(found, expected)
    return Closeness(float(cosines.mean()), float(np.percentile(cosines, 1)), float(cosines.min()))


def row_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine of each row of ``left`` with the same row of ``right``: float64 [rows]; NaN for zero vectors."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def largest_norm_error(vectors: np.ndarray) -> float:
    """How far the length of any row of [rows, dimension] is from 1."""
    return float(np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max())
