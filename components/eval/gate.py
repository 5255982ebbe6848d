"""The decision whether the fine-tuned model may go on to export and deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from components.eval.component import EvalConfig
from components.eval.metrics import Scores, metric_name

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gate:
    """``passed`` and the sentences that say why.

    ``gain`` is the fine-tuned model's value of ``metric`` less the base model's, ``interval`` its 95 % confidence
    interval; both are None unless both models were evaluated.
    """

    metric: str
    passed: bool
    reasons: tuple[str, ...]
    gain: float | None = None
    interval: tuple[float, float] | None = None


def decide(config: EvalConfig, scores: Mapping[str, Scores], queries: int) -> Gate:
    """Whether the fine-tuned model gains ``min_gain`` over the base model on enough test queries.

    The gate does not pass when either model was not evaluated, for then there is nothing to decide on. The confidence
    interval is reported and does not decide.
    """
    metric = metric_name(config.gate_metric, config.gate_k)
    missing = [
        f"The {label} model was not evaluated (eval_{name} is false), so its {metric} is not known and the gate "
        f"cannot pass."
        for name, label in (("finetuned", "fine-tuned"), ("base", "base"))
        if name not in scores
    ]
    if missing:
        return Gate(metric, False, tuple(missing))
    base, tuned = (_mean(scores[name], metric) for name in ("base", "finetuned"))
    gain = round(tuned - base, 5)
    interval = bootstrap_interval(paired_differences(scores, metric))
    enough, gained = queries >= config.min_eval_queries, gain >= config.min_gain
    reasons = [
        f"{metric} is {base:.4f} with the base model and {tuned:.4f} with the fine-tuned one: a change of {gain:+.4f}, "
        f"{'at least' if gained else 'less than'} what the gate asks for (min_gain {config.min_gain:g})."
    ]
    if not enough:
        reasons.append(
            f"The test set has {queries} queries and min_eval_queries asks for {config.min_eval_queries}: "
            f"so few decide nothing; make more test data, or lower the setting."
        )
    low, high = interval
    if low <= 0 <= high:
        reasons.append(
            f"Note: the 95 % confidence interval of the gain, {low:+.4f} to {high:+.4f}, includes zero: "
            f"on {queries} queries a difference of this size may be chance."
        )
    return Gate(metric, enough and gained, tuple(reasons), gain, interval)


def paired_differences(scores: Mapping[str, Scores], metric: str) -> dict[str, float]:
    """Fine-tuned less base, for every query."""
    base, tuned = scores["base"].per_query, scores["finetuned"].per_query
    return {query: round(tuned[query][metric] - base[query][metric], 5) for query in base}


def bootstrap_interval(differences: Mapping[str, float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Sakai 2006, https://doi.org/10.1145/1148170.1148261)."""
    values = np.array([*differences.values()])
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return round(float(low), 5), round(float(high), 5)


def _mean(scores: Scores, metric: str) -> float:
    return next(family[metric] for family in scores.mean.values() if metric in family)
