"""Tests whether a difference between two systems on the same queries may be chance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from components.eval.metrics import Scores

RESAMPLES = 10_000
CONFIDENCE = 0.95


def compute_paired_differences(scores: Mapping[str, Scores], metric: str) -> dict[str, float]:
    """Return the value of ``metric`` with the fine-tuned model less that with the base model, by query."""
    base, tuned = scores["base"].per_query, scores["finetuned"].per_query
    return {query: round(tuned[query][metric] - base[query][metric], 5) for query in base}


def compute_bootstrap_interval(differences: Mapping[str, float], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap percentile interval of the mean (Sakai 2006, https://doi.org/10.1145/1148170.1148261)."""
    values = np.array([*differences.values()])
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return round(float(low), 5), round(float(high), 5)


def compute_randomisation_p_value(differences: Mapping[str, float], *, seed: int = 0) -> float:
    """Return the two-sided p-value of the paired randomisation test of the mean, in (0, 1].

    If both systems were the same, each query's difference could as well have the other sign; the p-value is the share
    of random sign flips whose mean is at least as far from zero as the observed one (Smucker, Allan & Carterette 2007,
    https://doi.org/10.1145/1321440.1321528). The observed assignment counts as one of them.
    """
    values = np.array([*differences.values()])
    generator = np.random.default_rng(seed)
    observed = abs(values.sum())
    # Sums that differ only by rounding are equal.
    threshold = observed - 1e-9 * max(1.0, observed)
    extreme = sum(abs(values @ generator.choice((-1.0, 1.0), size=len(values))) >= threshold for _ in range(RESAMPLES))
    return round(float((extreme + 1) / (RESAMPLES + 1)), 5)
