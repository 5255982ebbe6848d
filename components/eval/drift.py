"""Whether an endpoint finds what the checkpoint finds that it should serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.eval.component import EvalConfig
from components.eval.metrics import Scores

# Below this cut-off one query more or less moves a metric further.
LOW_K = 5


@dataclass(frozen=True)
class Drift:
    """A metric's mean with the checkpoint and with the endpoint, and how far apart they may be."""

    metric: str
    checkpoint: float
    endpoint: float
    tolerance: float

    @property
    def within(self) -> bool:
        return round(abs(self.endpoint - self.checkpoint), 5) <= self.tolerance


def drift(config: EvalConfig, scores: Mapping[str, Scores]) -> tuple[Drift, ...]:
    """Every metric of fine-tuned model and endpoint, side by side; empty unless both were evaluated."""
    if not {"finetuned", "nim"} <= set(scores):
        return ()
    return tuple(
        Drift(metric, value, scores["nim"].mean[family][metric], _tolerance(config, metric))
        for family, values in scores["finetuned"].mean.items()
        for metric, value in values.items()
    )


def drift_reason(found: tuple[Drift, ...]) -> str | None:
    """One sentence for the metrics that are too far apart; None when there are none."""
    beyond = [one for one in found if not one.within]
    if not beyond:
        return None
    worst = max(beyond, key=lambda one: abs(one.endpoint - one.checkpoint) - one.tolerance)
    return (
        f"The endpoint does not score as the checkpoint in {len(beyond)} of {len(found)} metrics, furthest in "
        f"{worst.metric}: {worst.endpoint:.4f} instead of {worst.checkpoint:.4f}, with a tolerance of "
        f"{worst.tolerance:g}: it serves another model, or cuts or prefixes texts differently."
    )


def _tolerance(config: EvalConfig, metric: str) -> float:
    low = int(metric.partition("@")[2]) < LOW_K
    return config.nim_metric_low_k_tolerance if low else config.nim_metric_tolerance
