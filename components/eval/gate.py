"""The decision whether the fine-tuned model may go on to export and deployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.eval.component import EvalConfig
from components.eval.drift import drift, drift_reason
from components.eval.metrics import Scores, metric_name
from components.eval.significance import bootstrap_interval, paired_differences, randomisation_p_value
from components.eval.slices import Slice


@dataclass(frozen=True)
class Gate:
    """``passed`` and the sentences that say why.

    ``gain`` is the fine-tuned model's value of ``metric`` less the base model's, ``interval`` its 95 % confidence
    interval, ``p_value`` that of the paired randomisation test; all are None unless both models were evaluated.
    """

    metric: str
    passed: bool
    reasons: tuple[str, ...]
    gain: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None


def decide(
    config: EvalConfig,
    scores: Mapping[str, Scores],
    queries: int,
    slices: Iterable[Slice] = (),
    golden: Mapping[str, Scores] | None = None,
) -> Gate:
    """Whether the fine-tuned model gains ``min_gain`` over the base model on enough test queries.

    ``golden`` are the scores on the golden set. A ``champion`` among ``scores`` must be beaten by
    ``min_champion_gain`` as well. ``max_p_value``, ``min_gain_lower_bound``, ``max_slice_loss``, ``max_golden_loss``
    and ``fail_on_nim_metric_drift`` decide as well when they are set. The gate does not pass when either model was not
    evaluated, for then there is nothing to decide on. The confidence interval is always reported.
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
    differences = paired_differences(scores, metric)
    interval, p_value = bootstrap_interval(differences), randomisation_p_value(differences)
    gained = gain >= config.min_gain
    headline = (
        f"{metric} is {base:.4f} with the base model and {tuned:.4f} with the fine-tuned one: a change of {gain:+.4f}, "
        f"{'at least' if gained else 'less than'} what the gate asks for (min_gain {config.min_gain:g})."
    )
    uncertain = _uncertain(config, queries, interval, p_value)
    objections = _too_few(config, queries) + uncertain + _losing_slices(config, slices)
    objections += _golden_loss(config, golden, metric) + _champion(config, scores, metric)
    drifted = drift_reason(drift(config, scores))
    notes = [] if uncertain else _notes(differences, queries, interval, p_value)
    passed = gained and not objections and not (drifted and config.fail_on_nim_metric_drift)
    reasons = (headline, *objections, *([drifted] if drifted else []), *notes)
    return Gate(metric, passed, reasons, gain, interval, p_value)


def _too_few(config: EvalConfig, queries: int) -> list[str]:
    if queries >= config.min_eval_queries:
        return []
    return [
        f"The test set has {queries} queries and min_eval_queries asks for {config.min_eval_queries}: "
        f"so few decide nothing; make more test data, or lower the setting."
    ]


def _uncertain(config: EvalConfig, queries: int, interval: tuple[float, float], p_value: float) -> list[str]:
    """Why the gain is not certain enough; nothing unless a setting asks for certainty."""
    reasons = []
    if config.max_p_value is not None and p_value > config.max_p_value:
        reasons.append(
            f"The paired randomisation test gives p = {p_value:.4f}, above max_p_value {config.max_p_value:g}: "
            f"on {queries} queries the difference may be chance."
        )
    if config.min_gain_lower_bound is not None and interval[0] < config.min_gain_lower_bound:
        reasons.append(
            f"The 95 % confidence interval of the gain begins at {interval[0]:+.4f}, below min_gain_lower_bound "
            f"{config.min_gain_lower_bound:g}: on {queries} queries the true gain may be as small."
        )
    return reasons


def _notes(differences: Mapping[str, float], queries: int, interval: tuple[float, float], p_value: float) -> list[str]:
    """What a person should know whatever the gate decides."""
    low, high = interval
    if not any(differences.values()):
        return ["Note: not one query's figure changed: training did too little, or the checkpoint is the base model."]
    if low <= 0 <= high:
        return [
            f"Note: the 95 % confidence interval of the gain, {low:+.4f} to {high:+.4f}, includes zero: "
            f"on {queries} queries a difference of this size may be chance (p = {p_value:.4f})."
        ]
    return []


def _losing_slices(config: EvalConfig, slices: Iterable[Slice]) -> list[str]:
    """A sentence for each slice that lost more than ``max_slice_loss``; small slices decide nothing."""
    if config.max_slice_loss is None:
        return []
    return [
        f"Queries with {one.field} {one.value} ({one.queries}) change by {one.gain:+.4f}: more than the loss of "
        f"{config.max_slice_loss:g} that max_slice_loss allows."
        for one in slices
        if one.gain is not None and one.queries >= config.min_eval_queries and -one.gain > config.max_slice_loss
    ]


def _golden_loss(config: EvalConfig, golden: Mapping[str, Scores] | None, metric: str) -> list[str]:
    """Why the golden set speaks against the model; nothing unless ``max_golden_loss`` asks."""
    if config.max_golden_loss is None:
        return []
    if golden is None:
        return ["max_golden_loss is set and there is no golden set: give golden_eval, or leave the setting out."]
    change = round(_mean(golden["finetuned"], metric) - _mean(golden["base"], metric), 5)
    if -change <= config.max_golden_loss:
        return []
    return [
        f"On the golden set {metric} changes by {change:+.4f}: more than the loss of {config.max_golden_loss:g} that "
        f"max_golden_loss allows."
    ]


def _champion(config: EvalConfig, scores: Mapping[str, Scores], metric: str) -> list[str]:
    """Why the model that is served now should stay; nothing without a champion."""
    if "champion" not in scores:
        return []
    champion, tuned = (_mean(scores[name], metric) for name in ("champion", "finetuned"))
    gain = round(tuned - champion, 5)
    if gain >= config.min_champion_gain:
        return []
    return [
        f"The champion, the model that is served now, has {metric} {champion:.4f}: a change of {gain:+.4f}, less than "
        f"min_champion_gain {config.min_champion_gain:g} asks for."
    ]


def _mean(scores: Scores, metric: str) -> float:
    return next(family[metric] for family in scores.mean.values() if metric in family)
