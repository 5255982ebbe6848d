"""Settings from text and from YAML mean what they look like, and wrong ones are explained."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import ValidationError, model_validator

from components.core.errors import InputError
from components.core.settings import Settings, is_in_form, load, parse_text, setting


class TrialConfig(Settings):
    name: str = setting("a", "Name", form=True)
    revision: str | None = setting(None, "Revision")
    mode: Literal["avg", "cls"] = setting("avg", "Mode")
    count: int = setting(3, "Count", gt=0)
    limit: int | None = setting(None, "Limit")
    rate: float = setting(0.5, "Rate", le=1)
    cutoffs: list[int] = setting([1], "Cut-offs", min_length=1)
    enabled: bool = setting(True, "Enabled")

    @model_validator(mode="after")
    def _limit_is_not_below_count(self) -> TrialConfig:
        if self.limit is not None and self.limit < self.count:
            raise ValueError(f"limit = {self.limit} is below count = {self.count}")
        return self


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "query: ", "query: "),
        ("name", "null", "null"),
        ("name", "12", "12"),
        ("name", "", ""),
        ("revision", "null", None),
        ("revision", "0123456", "0123456"),
        ("mode", "cls", "cls"),
        ("count", "12", 12),
        ("limit", "null", None),
        ("rate", "1e-1", 0.1),
        ("rate", "1", 1.0),
        ("cutoffs", "[1, 5, 10]", [1, 5, 10]),
        ("enabled", "false", False),
    ],
)
def test_text_of_a_command_line(name: str, text: str, value: Any) -> None:
    config = load(TrialConfig, {name: parse_text(TrialConfig, name, text)}, stage="trial")
    found = getattr(config, name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "trial: there is no setting 'cuont': did you mean 'count'?"),
        ({"xyzzy": 1}, "trial: there is no setting 'xyzzy'"),
        ({"count": 0}, "trial: count = 0: input should be greater than 0"),
        ({"count": 2.5}, "trial: count = 2.5: input should be a valid integer"),
        ({"rate": "fast"}, "trial: rate = 'fast': input should be a valid number"),
        ({"mode": "max"}, "trial: mode = 'max': input should be 'avg' or 'cls'"),
        ({"cutoffs": [1, "x"]}, "trial: cutoffs.1 = 'x': input should be a valid integer"),
        ({"limit": 1}, "trial: limit = 1 is below count = 3"),
    ],
)
def test_a_wrong_setting_is_explained_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        load(TrialConfig, values, stage="trial")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(InputError, match=r"count = 0.*; rate = 2.*; there is no setting 'nmae'"):
        load(TrialConfig, {"count": 0, "rate": 2, "nmae": ""}, stage="trial")


def test_a_default_that_breaks_its_own_rule_is_found() -> None:
    class WrongConfig(Settings):
        count: int = setting(0, "Count", gt=0)

    with pytest.raises(InputError, match="count = 0"):
        load(WrongConfig, {}, stage="trial")


def test_settings_do_not_change_after_parsing() -> None:
    with pytest.raises(ValidationError):
        TrialConfig().count = 4  # type: ignore[misc]


def test_the_form_shows_what_it_was_told_to() -> None:
    assert [name for name, field in TrialConfig.model_fields.items() if is_in_form(field)] == ["name"]


class Kept(Settings):
    """A group of settings."""

    amount: int = setting(1, "How much")
    place: str = setting("here", "Where it is kept", affects_result=False)


class Whole(Kept):
    """Settings of a stage."""

    rate: float = setting(0.5, "How fast")


def test_a_group_is_taken_out_of_the_settings_of_a_stage() -> None:
    assert Whole(amount=3, rate=2.0).group(Kept) == Kept(amount=3)


def test_settings_that_do_not_affect_the_result_are_left_out_of_its_description() -> None:
    assert Whole().dump_what_affects_result() == {"amount": 1, "rate": 0.5}
    assert Whole(place="there").dump_what_affects_result() == Whole().dump_what_affects_result()
