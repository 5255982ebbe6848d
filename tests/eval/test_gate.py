from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from components.core.errors import InputError
from components.core.retrieval.beir_data import BeirData
from components.core.settings import load
from components.eval.component import EvalConfig
from components.eval.gate import decide_gate
from components.eval.metrics import Scores
from components.eval.significance import compute_bootstrap_interval, compute_randomisation_p_value
from components.eval.slices import slice_by_kind


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
    gate = decide_gate(EvalConfig(**settings), found, queries)
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
    gate = decide_gate(EvalConfig(), {"base": base, "finetuned": tuned}, 50)
    low, high = gate.interval
    assert low < 0 < high
    assert "includes zero" in gate.reasons[-1]


def test_interval_against_scipy() -> None:
    values = np.random.default_rng(7).normal(0.05, 0.2, 120)
    reference = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=3)
    low, high = compute_bootstrap_interval({str(n): value for n, value in enumerate(values)})
    assert low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert high == pytest.approx(reference.confidence_interval.high, abs=0.002)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_values": []}, "k_values"),
        ({"k_values": [0, -3]}, "k_values"),
        ({"gate_k": 0}, "gate_k"),
        ({"gate_metric": "accuracy"}, "gate_metric"),
        ({"fail_on_nim_metric_drift": True}, "set eval_finetuned and eval_nim to true"),
        ({"eval_base": False, "eval_finetuned": False}, "are all false: set one to true"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load(EvalConfig, values, stage="eval")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1])
def test_p_value_against_scipy(shift: float) -> None:
    values = np.random.default_rng(5).normal(shift, 0.2, 80)
    reference = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=2)
    assert compute_randomisation_p_value(dict(enumerate(values))) == pytest.approx(reference.pvalue, abs=0.015)


def test_p_value_is_exact_where_it_can_be_counted() -> None:
    """Of the 2^5 sign flips of five equal gains two are as far from zero as all of one sign."""
    assert compute_randomisation_p_value(dict.fromkeys("abcde", 0.1)) == pytest.approx(2 / 32, abs=0.01)


def test_models_that_find_the_same_do_not_differ() -> None:
    assert compute_randomisation_p_value(dict.fromkeys(range(50), 0.0)) == 1.0


@pytest.mark.parametrize(("shift", "passed"), [(0.2, True), (0.01, False)])
def test_a_gain_that_may_be_chance_does_not_pass_when_certainty_is_asked_for(shift: float, passed: bool) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 60)
    noise += shift - noise.mean()
    base, tuned = scores(0.5, 60), scores(0.5 + shift, 60)
    for name, difference in zip(tuned.per_query, noise, strict=True):
        tuned.per_query[name]["NDCG@10"] += difference - shift
    found = {"base": base, "finetuned": tuned}
    assert decide_gate(EvalConfig(), found, 60).passed
    gate = decide_gate(EvalConfig(max_p_value=0.05), found, 60)
    assert gate.passed is passed
    assert ("paired randomisation test" in " ".join(gate.reasons)) is not passed


@pytest.mark.parametrize(
    ("least", "passed"), [(None, True), (0.0, True), (0.1, False)], ids=["not asked for", "above zero", "too low"]
)
def test_the_lower_end_of_the_confidence_interval_can_decide(least: float | None, passed: bool) -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, 100)
    noise += 0.12 - noise.mean()
    base = Scores({"NDCG": {"NDCG@10": 0.5}}, {f"q{n}": {"NDCG@10": 0.5} for n in range(100)})
    tuned = Scores({"NDCG": {"NDCG@10": 0.62}}, {f"q{n}": {"NDCG@10": 0.5 + x} for n, x in enumerate(noise)})
    gate = decide_gate(EvalConfig(min_gain_lower_bound=least), {"base": base, "finetuned": tuned}, 100)
    low = bootstrap((noise,), np.mean, confidence_level=0.95, method="percentile", random_state=3)
    assert gate.interval[0] == pytest.approx(low.confidence_interval.low, abs=0.01)
    assert 0 < gate.interval[0] < 0.1
    assert gate.passed is passed
    assert ("min_gain_lower_bound" in " ".join(gate.reasons)) is not passed


def test_a_model_that_ranks_as_the_base_model_is_named() -> None:
    gate = decide_gate(EvalConfig(), {"base": scores(0.5), "finetuned": scores(0.5)}, 100)
    assert "not one query's figure changed" in gate.reasons[-1]


def two_kinds(lost: float, of_second_kind: int) -> tuple[BeirData, dict[str, Scores]]:
    """100 queries; those of the second kind lose, the others gain as much as makes the mean better."""
    names = [f"q{n}" for n in range(100)]
    kinds = {name: "lookup" if n < of_second_kind else "multi_hop" for n, name in enumerate(names)}
    texts = dict.fromkeys(names, "how does it work")
    data = BeirData({}, {}, texts, {}, {name: {"query_type": kind} for name, kind in kinds.items()})
    tuned = {name: {"NDCG@10": 0.5 - lost if kind == "lookup" else 0.9} for name, kind in kinds.items()}
    mean = sum(values["NDCG@10"] for values in tuned.values()) / len(tuned)
    return data, {"base": scores(0.5), "finetuned": Scores({"NDCG": {"NDCG@10": mean}}, tuned)}


@pytest.mark.parametrize(
    ("lost", "queries", "settings", "passed"),
    [
        pytest.param(0.2, 30, {}, True, id="not asked for"),
        pytest.param(0.2, 30, {"max_slice_loss": 0.1}, False, id="too large a loss"),
        pytest.param(0.1, 30, {"max_slice_loss": 0.1}, True, id="exactly the loss allowed"),
        pytest.param(0.2, 10, {"max_slice_loss": 0.1}, True, id="too few queries of the kind"),
    ],
)
def test_a_kind_of_query_that_became_worse(lost: float, queries: int, settings: dict[str, float], passed: bool) -> None:
    data, found = two_kinds(lost, queries)
    gate = decide_gate(EvalConfig(**settings), found, 100, slice_by_kind(data, found, "NDCG@10"))
    assert gate.passed is passed
    assert ("query_type lookup" in " ".join(gate.reasons)) is not passed


def test_slices_are_the_means_of_their_queries() -> None:
    data, found = two_kinds(0.2, 30)
    one, two = slice_by_kind(data, found, "NDCG@10")
    assert [(s.field, s.value, s.queries) for s in (one, two)] == [
        ("query_type", "lookup", 30),
        ("query_type", "multi_hop", 70),
    ]
    assert (one.means, one.gain) == ({"base": 0.5, "finetuned": 0.3}, -0.2)
    assert two.gain == pytest.approx(0.4)


def test_slices_by_length_are_in_order_of_length() -> None:
    texts = {f"q{n}": "word " * n for n in range(1, 31)}
    found = slice_by_kind(BeirData({}, {}, texts, {}), {"base": scores(0.5, 31)}, "NDCG@10")
    assert [(s.value, s.queries) for s in found] == [
        ("1 to 4 words", 4),
        ("5 to 9 words", 5),
        ("10 to 19 words", 10),
        ("20 words and more", 11),
    ]
    assert {s.gain for s in found} == {None}


@pytest.mark.parametrize(
    ("metric", "served", "settings", "passed", "said"),
    [
        pytest.param("NDCG@10", 0.61, {"fail_on_nim_metric_drift": True}, True, False, id="exactly the tolerance"),
        pytest.param("NDCG@10", 0.585, {"fail_on_nim_metric_drift": True}, False, True, id="worse"),
        pytest.param(
            "NDCG@10", 0.615, {"fail_on_nim_metric_drift": True}, False, True, id="better is another model too"
        ),
        pytest.param("NDCG@1", 0.625, {"fail_on_nim_metric_drift": True}, True, False, id="wider at low cut-offs"),
        pytest.param("NDCG@1", 0.64, {"fail_on_nim_metric_drift": True}, False, True, id="too far at a low cut-off"),
        pytest.param("NDCG@10", 0.2, {}, True, True, id="only said, unless asked for"),
    ],
)
def test_an_endpoint_that_serves_something_else(
    metric: str, served: float, settings: dict[str, bool], passed: bool, said: bool
) -> None:
    def of(value: float) -> Scores:
        return Scores({"NDCG": {metric: value}}, {f"q{n}": {metric: value} for n in range(50)})

    config = EvalConfig(eval_nim=True, gate_k=int(metric.partition("@")[2]), **settings)
    gate = decide_gate(config, {"base": of(0.5), "finetuned": of(0.6), "nim": of(served)}, 50)
    assert gate.passed is passed
    assert ("endpoint does not score as the checkpoint" in " ".join(gate.reasons)) is said


@pytest.mark.parametrize(
    ("golden", "settings", "passed", "reason"),
    [
        pytest.param(0.4, {}, True, "", id="not asked for"),
        pytest.param(0.4, {"max_golden_loss": 0.05}, False, "On the golden set NDCG@10 changes by -0.1000", id="worse"),
        pytest.param(0.4, {"max_golden_loss": 0.1}, True, "", id="exactly the loss allowed"),
        pytest.param(0.6, {"max_golden_loss": 0.0}, True, "", id="better"),
        pytest.param(None, {"max_golden_loss": 0.1}, False, "there is no golden set", id="asked for and absent"),
    ],
)
def test_a_model_that_forgets(golden: float | None, settings: dict[str, float], passed: bool, reason: str) -> None:
    found = {"base": scores(0.5), "finetuned": scores(0.6)}
    on_golden = None if golden is None else {"base": scores(0.5), "finetuned": scores(golden)}
    gate = decide_gate(EvalConfig(**settings), found, 100, golden=on_golden)
    assert gate.passed is passed
    assert reason in " ".join(gate.reasons)
    assert len(gate.reasons) == (2 if reason else 1)


@pytest.mark.parametrize(
    ("champion", "settings", "passed"),
    [
        pytest.param(0.55, {}, True, id="beaten"),
        pytest.param(0.6, {}, True, id="equalled"),
        pytest.param(0.62, {}, False, id="better than the new model"),
        pytest.param(0.55, {"min_champion_gain": 0.1}, False, id="not beaten by enough"),
        pytest.param(0.62, {"min_champion_gain": -0.05}, True, id="a loss that is allowed"),
    ],
)
def test_the_model_that_is_served_now_must_be_beaten(champion: float, settings: dict[str, float], passed: bool) -> None:
    found = {"base": scores(0.5), "champion": scores(champion), "finetuned": scores(0.6)}
    gate = decide_gate(EvalConfig(**settings), found, 100)
    assert gate.passed is passed
    assert any("served now" in reason for reason in gate.reasons) is not passed
