"""Chosen stages: what the user must bring, what is gated, and whose settings are meant."""

from __future__ import annotations

import pytest

from components.core.errors import InputError
from components.recipe.plan import make_plan, resolve_settings
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, STAGES


@pytest.mark.parametrize(
    ("start", "end", "brought", "by_uri"),
    [
        ("sdg", "deploy", {"corpus"}, set()),
        ("prep", "deploy", {"qa_pairs"}, set()),
        ("finetune", "deploy", {"training_data", "eval_data"}, set()),
        ("eval", "deploy", {"checkpoint", "eval_data"}, set()),
        ("export", "deploy", {"checkpoint"}, set()),
        ("deploy", "deploy", {"deploy_bundle"}, {"exported_model", "checkpoint"}),
        ("sdg", "finetune", {"corpus"}, set()),
        ("finetune", "finetune", {"training_data"}, set()),
    ],
)
def test_what_no_chosen_stage_makes_is_brought(start: str, end: str, brought: set[str], by_uri: set[str]) -> None:
    plan = make_plan(start, end)
    assert (set(plan.required_artifacts), set(plan.uri_artifacts)) == (brought, by_uri)


def test_a_corpus_without_news_and_a_model_that_is_no_better_end_the_run() -> None:
    gated = {stage.name: [one.name for one in make_plan().after(stage)] for stage in STAGES if stage.gate}
    assert gated == {"sdg": ["prep", "finetune", "eval", "export", "deploy"], "eval": ["export", "deploy"]}


def test_optional_artifacts_are_brought_only_when_asked_for() -> None:
    assert "golden_eval" not in make_plan().required_artifacts
    assert "golden_eval" in make_plan(extra=["golden_eval"]).required_artifacts


def test_what_a_setting_does_for_can_be_left_out() -> None:
    plan = make_plan(without=["corpus"])
    assert (plan.required_artifacts, plan.replaced_artifacts) == ((), ("corpus",))
    for start, name in (("prep", "corpus"), ("prep", "qa_pairs")):
        with pytest.raises(InputError, match=f"do without '{name}'"):
            make_plan(start, without=[name])


@pytest.mark.parametrize(
    ("start", "end", "extra", "message"),
    [
        ("eval", "sdg", [], "--from eval comes after --to sdg"),
        ("evl", "sdg", [], "there is no stage 'evl'"),
        ("export", "deploy", ["golden_eval"], "none of the stages export to deploy takes 'golden_eval'"),
    ],
)
def test_impossible_plans_are_refused(start: str, end: str, extra: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(start, end, extra=extra)


def test_a_name_alone_is_meant_for_every_stage_that_has_it() -> None:
    configs = resolve_settings(STAGES, profile_name="llama", values={"query_prefix": "q: "})
    assert {name: c.query_prefix for name, c in configs.items() if hasattr(c, "query_prefix")} == {
        "sdg": "q: ",
        "prep": "q: ",
        "finetune": "q: ",
    }


def test_a_stages_own_value_wins() -> None:
    configs = resolve_settings(
        STAGES, profile_name="llama", values={"prep.encode_batch_tokens": 7, "encode_batch_tokens": 9}
    )
    assert (configs["prep"].encode_batch_tokens, configs["eval"].encode_batch_tokens) == (7, 9)


def test_what_is_given_wins_over_the_profile() -> None:
    assert PROFILES["small"]["finetune.learning_rate"] != 0.5
    assert (
        resolve_settings(STAGES, profile_name="small", values={"learning_rate": 0.5})["finetune"].learning_rate == 0.5
    )


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_holds_only_settings_that_exist(name: str) -> None:
    configs = resolve_settings(STAGES, profile_name=name, values=PROFILES[name])
    assert tuple(configs) == NAMES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_epoch": 1}, "no setting 'num_epoch' in any stage: did you mean 'num_epochs'"),
        ({"finetun.num_epochs": 1}, "there is no stage 'finetun'"),
        ({"deploy.num_epochs": 1}, "no setting 'num_epochs' in deploy"),
        ({"finetune.num_epochs": 1}, "the stage finetune is not among the chosen ones"),
        ({"num_epochs": 1}, "num_epochs is a setting of finetune, which is not among the chosen stages"),
    ],
)
def test_settings_without_a_chosen_owner_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_settings(make_plan("sdg", "prep").stages, profile_name="llama", values=given)


def test_unknown_profile_is_refused() -> None:
    with pytest.raises(InputError, match="there is no profile 'big': choose one of llama, nemotron3, small"):
        resolve_settings(STAGES, profile_name="big", values={})
