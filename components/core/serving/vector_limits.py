"""How close served or exported vectors must be to the checkpoint's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8_sq", "int8"]


@dataclass(frozen=True)
class ParityLimits:
    """Lowest cosines that pass, over all probes: their mean, first percentile and minimum.

    ``repeat`` holds between two answers for the same text, for instance in batches of different sizes. ``overlap`` is
    the least share of a query's ten nearest passages that must be the checkpoint's own, ``ndcg_loss`` how much of
    nDCG@10 may be lost.
    """

    mean: float
    p1: float
    minimum: float
    repeat: float
    overlap: float
    ndcg_loss: float

    def compute_allowed_loss(self, queries: int) -> float:
        """Return how much of nDCG@10 over so many queries may be lost.

        Between two nearly equal passages any rounding decides: one query whose answer changes places must not fail a
        model, however few queries there are.
        """
        return max(self.ndcg_loss, 1 / queries)

    def __str__(self) -> str:
        return f"mean >= {self.mean:.6g}, p1 >= {self.p1:.6g}, min >= {self.minimum:.6g}"


_HALF = ParityLimits(mean=0.999, p1=0.997, minimum=0.99, repeat=0.999, overlap=0.97, ndcg_loss=0.005)
_INT8 = ParityLimits(mean=0.985, p1=0.97, minimum=0.93, repeat=0.98, overlap=0.90, ndcg_loss=0.015)
PARITY_LIMITS: dict[Precision, ParityLimits] = {
    "fp32": ParityLimits(mean=0.9999, p1=0.9995, minimum=0.999, repeat=0.99999, overlap=0.99, ndcg_loss=0.002),
    "fp16": _HALF,
    "bf16": _HALF,
    "fp8": ParityLimits(mean=0.99, p1=0.98, minimum=0.95, repeat=0.995, overlap=0.93, ndcg_loss=0.01),
    # Activations are scaled once for all texts (int8_sq), or by the largest value of each token (int8).
    "int8_sq": _INT8,
    "int8": _INT8,
}
NORM_TOLERANCE: dict[Precision, float] = {name: 1e-4 if name == "fp32" else 1e-2 for name in PARITY_LIMITS}


@dataclass(frozen=True)
class CosineSummary:
    """Summary of the cosines of rows that should be equal; ``deviation`` is their standard deviation."""

    mean: float
    p1: float
    minimum: float
    deviation: float = 0.0

    def is_within(self, limits: ParityLimits) -> bool:
        """Return whether mean, first percentile and minimum reach ``limits``; NaN never does."""
        return self.mean >= limits.mean and self.p1 >= limits.p1 and self.minimum >= limits.minimum

    def to_figures(self) -> dict[str, float]:
        """Return mean, first percentile and minimum, rounded, as manifests and reports name them."""
        return {"mean": round(self.mean, 7), "p1": round(self.p1, 7), "min": round(self.minimum, 7)}

    @classmethod
    def from_figures(cls, figures: dict[str, float]) -> CosineSummary:
        """Return the summary that ``to_figures`` wrote, with ``deviation`` when it stands beside them."""
        return cls(figures["mean"], figures["p1"], figures["min"], figures.get("deviation", 0.0))


def choose_limits(precision: Precision, noise: CosineSummary | None = None) -> ParityLimits:
    """Return the limits of ``precision``, lowered to what the model itself can keep in half precision.

    ``noise`` says how close the checkpoint's own vectors in half precision (PyTorch) are to those in float32. Nothing
    that computes in less can be closer, so each limit is at most three standard deviations below it. The limits of
    fp32 are never lowered, and none falls below that of INT8.
    """
    limits = PARITY_LIMITS[precision]
    if noise is None or precision == "fp32":
        return limits

    def lower(limit: float, floor: float, least: float) -> float:
        reachable = floor - 3 * noise.deviation
        return max(min(limit, reachable), least) if reachable == reachable else limit

    return replace(
        limits,
        mean=lower(limits.mean, noise.mean, _INT8.mean),
        p1=lower(limits.p1, noise.p1, _INT8.p1),
        minimum=lower(limits.minimum, noise.minimum, _INT8.minimum),
    )


def compare_vectors(vectors: np.ndarray, expected: np.ndarray) -> CosineSummary:
    """Summarise the cosines of each row of ``vectors`` with the same row of ``expected``, floats [rows, dimension]."""
    cosines = compute_row_cosines(vectors, expected)
    return CosineSummary(
        float(cosines.mean()), float(np.percentile(cosines, 1)), float(cosines.min()), float(cosines.std())
    )


def compute_row_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compute the cosine of each row of ``left`` with the same row of ``right``, both floats [rows, dimension].

    Returns float64 [rows]; NaN for zero vectors.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: np.ndarray = (left * right).sum(axis=1) / (
            np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        )
    return cosines


def compute_norm_error(vectors: np.ndarray) -> float:
    """Compute the largest distance of any row's length from 1; ``vectors``: floats [rows, dimension]."""
    return float(np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max())
