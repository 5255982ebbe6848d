"""The decision whether the fine-tuned model may go on to export and deployment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.eval.component import GateSettings
from components.eval.endpoint_drift import compare_with_endpoint, explain_drift
from components.eval.metrics import Scores, metric_name
from components.eval.significance import (
    compute_bootstrap_interval,
    compute_paired_differences,
    compute_randomisation_p_value,
)
from components.eval.slices import Slice


@dataclass(frozen=True)
class EvalGate:
    """The decision of the gate: ``passed``, and the sentences that say why.

    ``gain`` is the fine-tuned model's value of ``metric`` less the base model's, ``interval`` its 95 % confidence
    interval, ``p_value`` that of the paired randomisation test; all are None unless both models were evaluated.
    """

    metric: str
    passed: bool
    reasons: tuple[str, ...]
    gain: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None


def decide_gate(
    settings: GateSettings,
    scores: Mapping[str, Scores],
    queries: int,
    slices: Iterable[Slice] = (),
    golden: Mapping[str, Scores] | None = None,
) -> EvalGate:
    """Decide whether the fine-tuned model gains ``min_gain`` over the base model on enough test queries.

    ``golden`` are the scores on the golden set. A ``champion`` among ``scores`` must be beaten by
    ``min_champion_gain`` as well. ``max_p_value``, ``min_gain_lower_bound``, ``max_slice_loss``, ``max_golden_loss``
    and ``fail_on_nim_metric_drift`` decide as well when they are set. The gate does not pass when either model was not
    evaluated, for then there is nothing to decide on. The confidence interval is always reported.
    """
    metric = metric_name(settings.gate_metric, settings.gate_k)
    missing = [
        f"The {label} model was not evaluated (eval_{name} is false), so its {metric} is not known and the gate "
        f"cannot pass."
        for name, label in (("finetuned", "fine-tuned"), ("base", "base"))
        if name not in scores
    ]
    if missing:
        return EvalGate(metric, False, tuple(missing))
    base, tuned = (scores[name].get_mean(metric) for name in ("base", "finetuned"))
    gain = round(tuned - base, 5)
    differences = compute_paired_differences(scores, metric)
    interval = compute_bootstrap_interval(differences)
    p_value = compute_randomisation_p_value(differences)
    gained = gain >= settings.min_gain
    headline = (
        f"{metric} is {base:.4f} with the base model and {tuned:.4f} with the fine-tuned one: a change of {gain:+.4f}, "
        f"{'at least' if gained else 'less than'} what the gate asks for (min_gain {settings.min_gain:g})."
    )
    uncertain = _object_to_uncertainty(settings, queries, interval, p_value)
    objections = _object_to_few_queries(settings, queries) + uncertain + _object_to_losing_slices(settings, slices)
    objections += _object_to_golden_loss(settings, golden, metric) + _object_to_champion(settings, scores, metric)
    drift = explain_drift(compare_with_endpoint(settings, scores))
    notes = [] if uncertain else _note_chance(differences, queries, interval, p_value)
    passed = gained and not objections and not (drift and settings.fail_on_nim_metric_drift)
    reasons = (headline, *objections, *([drift] if drift else []), *notes)
    return EvalGate(metric, passed, reasons, gain, interval, p_value)


def _object_to_few_queries(settings: GateSettings, queries: int) -> list[str]:
    if queries >= settings.min_eval_queries:
        return []
    return [
        f"The test set has {queries} queries and min_eval_queries asks for {settings.min_eval_queries}: "
        f"so few decide nothing; make more test data, or lower the setting."
    ]


def _object_to_uncertainty(
    settings: GateSettings, queries: int, interval: tuple[float, float], p_value: float
) -> list[str]:
    """Say why the gain is not certain enough; nothing unless a setting asks for certainty."""
    reasons = []
    if settings.max_p_value is not None and p_value > settings.max_p_value:
        reasons.append(
            f"The paired randomisation test gives p = {p_value:.4f}, above max_p_value {settings.max_p_value:g}: "
            f"on {queries} queries the difference may be chance."
        )
    if settings.min_gain_lower_bound is not None and interval[0] < settings.min_gain_lower_bound:
        reasons.append(
            f"The 95 % confidence interval of the gain begins at {interval[0]:+.4f}, below min_gain_lower_bound "
            f"{settings.min_gain_lower_bound:g}: on {queries} queries the true gain may be as small."
        )
    return reasons


def _note_chance(
    differences: Mapping[str, float], queries: int, interval: tuple[float, float], p_value: float
) -> list[str]:
    """Say what a person should know whatever the gate decides."""
    low, high = interval
    if not any(differences.values()):
        return ["Note: not one query's figure changed: training did too little, or the checkpoint is the base model."]
    if low <= 0 <= high:
        return [
            f"Note: the 95 % confidence interval of the gain, {low:+.4f} to {high:+.4f}, includes zero: "
            f"on {queries} queries a difference of this size may be chance (p = {p_value:.4f})."
        ]
    return []


def _object_to_losing_slices(settings: GateSettings, slices: Iterable[Slice]) -> list[str]:
    """Name each slice that lost more than ``max_slice_loss``; small slices decide nothing."""
    if settings.max_slice_loss is None:
        return []
    return [
        f"Queries with {kind.field} {kind.value} ({kind.queries}) change by {kind.gain:+.4f}: more than the loss of "
        f"{settings.max_slice_loss:g} that max_slice_loss allows."
        for kind in slices
        if kind.gain is not None and kind.queries >= settings.min_eval_queries and -kind.gain > settings.max_slice_loss
    ]


def _object_to_golden_loss(settings: GateSettings, golden: Mapping[str, Scores] | None, metric: str) -> list[str]:
    """Say why the golden set speaks against the model; nothing unless ``max_golden_loss`` is set."""
    if settings.max_golden_loss is None:
        return []
    if golden is None:
        return ["max_golden_loss is set and there is no golden set: give golden_eval, or leave the setting out."]
    change = round(golden["finetuned"].get_mean(metric) - golden["base"].get_mean(metric), 5)
    if -change <= settings.max_golden_loss:
        return []
    return [
        f"On the golden set {metric} changes by {change:+.4f}: more than the loss of {settings.max_golden_loss:g} that "
        f"max_golden_loss allows."
    ]


def _object_to_champion(settings: GateSettings, scores: Mapping[str, Scores], metric: str) -> list[str]:
    """Say why the model that is served now should stay; nothing without a champion."""
    if "champion" not in scores:
        return []
    champion, tuned = (scores[name].get_mean(metric) for name in ("champion", "finetuned"))
    gain = round(tuned - champion, 5)
    if gain >= settings.min_champion_gain:
        return []
    return [
        f"The champion, the model that is served now, has {metric} {champion:.4f}: a change of {gain:+.4f}, less than "
        f"min_champion_gain {settings.min_champion_gain:g} asks for."
    ]
