from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from components.core.errors import InputError
from components.core.settings import load
from components.eval.component import EvalConfig
from components.eval.gate import bootstrap_interval, decide
from components.eval.metrics import Scores


def scores(value: float, queries: int = 100) -> Scores:
    return Scores({"NDCG": {"NDCG@10": value}}, {f"q{n}": {"NDCG@10": value} for n in range(queries)})


@pytest.mark.parametrize(
    ("base", "tuned", "queries", "settings", "passed", "reason"),
    [
        pytest.param(0.5, 0.6, 100, {}, True, "a change of +0.1000, at least what the gate asks for", id="better"),
        pytest.param(0.5, 0.5, 100, {}, True, "a change of +0.0000", id="equal passes a gate of zero"),
        pytest.param(0.6, 0.5, 100, {}, False, "a change of -0.1000, less than what the gate asks for", id="worse"),
        pytest.param(0.5, 0.51, 100, {"min_gain": 0.02}, False, "(min_gain 0.02)", id="too small a gain"),
        pytest.param(0.1, 0.3, 100, {"min_gain": 0.2}, True, "(min_gain 0.2)", id="exactly the gain, in floats"),
        pytest.param(0.6, 0.5, 100, {"min_gain": -0.2}, True, "(min_gain -0.2)", id="a loss that is allowed"),
        pytest.param(0.5, 0.6, 19, {}, False, "19 queries and min_eval_queries asks for 20", id="too few queries"),
        pytest.param(0.5, 0.6, 1, {"min_eval_queries": 1}, True, "a change of +0.1000", id="one query, when allowed"),
        pytest.param(0.5, None, 100, {}, False, "fine-tuned model was not evaluated (eval_finetuned", id="no tuned"),
        pytest.param(None, 0.5, 100, {}, False, "base model was not evaluated (eval_base", id="no base"),
    ],
)
def test_decisions(
    base: float | None, tuned: float | None, queries: int, settings: dict[str, float], passed: bool, reason: str
) -> None:
    found = {
        name: scores(value, queries) for name, value in (("base", base), ("finetuned", tuned)) if value is not None
    }
    gate = decide(EvalConfig(**settings), found, queries)
    assert gate.passed is passed
    assert reason in " ".join(gate.reasons)
    assert all(sentence[0].isupper() and sentence[-1] == "." for sentence in gate.reasons)
    assert (gate.gain is None) == (len(found) < 2)


def test_says_when_the_gain_may_be_chance() -> None:
    noise = np.random.default_rng(1).normal(0.01, 0.3, 50)
    base = Scores({"NDCG": {"NDCG@10": 0.5}}, {f"q{n}": {"NDCG@10": 0.5} for n in range(50)})
    tuned = Scores(
        {"NDCG": {"NDCG@10": 0.5 + noise.mean()}}, {f"q{n}": {"NDCG@10": 0.5 + x} for n, x in enumerate(noise)}
    )
    gate = decide(EvalConfig(), {"base": base, "finetuned": tuned}, 50)
    low, high = gate.interval
    assert low < 0 < high
    assert "includes zero" in gate.reasons[-1]


def test_interval_against_scipy() -> None:
    values = np.random.default_rng(7).normal(0.05, 0.2, 120)
    reference = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=3)
    low, high = bootstrap_interval({str(n): value for n, value in enumerate(values)})
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.002)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_values": []}, "k_values"),
        ({"k_values": [0, -3]}, "k_values"),
        ({"gate_k": 0}, "gate_k"),
        ({"gate_metric": "accuracy"}, "gate_metric"),
        ({"eval_base": False, "eval_finetuned": False}, "are all false: set one to true"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(EvalConfig, values, stage="eval")
    assert "\n" not in str(raised.value)
