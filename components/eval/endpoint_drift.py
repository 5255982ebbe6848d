"""Compares an endpoint with the checkpoint that it should serve, metric by metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.eval.component import DriftSettings
from components.eval.metrics import Scores

# Below this cut-off one query more or less moves a metric further.
LOW_K = 5


@dataclass(frozen=True)
class MetricDrift:
    """The mean of a metric with the checkpoint and with the endpoint, and how far apart they may be."""

    metric: str
    checkpoint: float
    endpoint: float
    tolerance: float

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the two means are close enough."""
        return round(abs(self.endpoint - self.checkpoint), 5) <= self.tolerance


def compare_with_endpoint(settings: DriftSettings, scores: Mapping[str, Scores]) -> tuple[MetricDrift, ...]:
    """Compare every metric of fine-tuned model and endpoint; return nothing unless both were evaluated."""
    if not {"finetuned", "nim"} <= set(scores):
        return ()
    return tuple(
        MetricDrift(metric, value, scores["nim"].mean[family][metric], _tolerance(settings, metric))
        for family, values in scores["finetuned"].mean.items()
        for metric, value in values.items()
    )


def explain_drift(drifts: tuple[MetricDrift, ...]) -> str | None:
    """Return a sentence about the metrics that are too far apart; None when there are none."""
    beyond = [drift for drift in drifts if not drift.is_within_tolerance]
    if not beyond:
        return None
    worst = max(beyond, key=lambda drift: abs(drift.endpoint - drift.checkpoint) - drift.tolerance)
    return (
        f"The endpoint does not score as the checkpoint in {len(beyond)} of {len(drifts)} metrics, furthest in "
        f"{worst.metric}: {worst.endpoint:.4f} instead of {worst.checkpoint:.4f}, with a tolerance of "
        f"{worst.tolerance:g}: it serves another model, or cuts or prefixes texts differently."
    )


def _tolerance(settings: DriftSettings, metric: str) -> float:
    low = int(metric.partition("@")[2]) < LOW_K
    return settings.nim_metric_low_k_tolerance if low else settings.nim_metric_tolerance
