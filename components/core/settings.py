"""Settings of a stage: declared once as fields of a model; forms, options and tables are derived from them."""

from __future__ import annotations

import difflib
import re
import reprlib
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from components.core.errors import InputError

# A few lines of YAML can stand for more elements than memory holds.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = 200
_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@")
Group = TypeVar("Group", bound="Settings")
AnySettings = TypeVar("AnySettings", bound="Settings")


class Settings(BaseModel):
    """Base of every stage's settings: unknown names are refused and values do not change after parsing.

    Settings that belong together are a class of their own, a group. A stage's class inherits its groups, so that users
    see flat names; code that needs one group takes that class as its parameter, and is given the stage's settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def group(self, kind: type[Group]) -> Group:
        """Return the settings of the group ``kind``, without all others."""
        return kind.model_validate({name: getattr(self, name) for name in kind.model_fields})

    def dump_what_affects_result(self) -> dict[str, Any]:
        """Return the settings that decide what is made, as JSON values by name."""
        without_effect = {name for name, field in type(self).model_fields.items() if not affects_result(field)}
        return self.model_dump(mode="json", exclude=without_effect)


def setting(
    default: Any,
    description: str,
    *,
    form: bool = False,
    in_work: str | None = None,
    affects_result: bool = True,
    **constraints: Any,
) -> Any:
    """A field of a settings model.

    ``form`` puts the setting into the pipeline's run form; every other setting is reached through the stage's
    ``<stage>_overrides``. ``in_work`` names the directory inside of WORK that null stands for in a run on one machine.
    ``affects_result`` is false for settings that say where and how a stage runs and what it keeps, not what it makes:
    a run continues, and counts as unchanged, when only these differ.
    ``constraints`` are pydantic's (``ge``, ``le``, ``min_length``, ...).
    """
    extra: Any = {"form": form, "in_work": in_work, "affects_result": affects_result}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def is_in_form(field: FieldInfo) -> bool:
    """Return whether the setting is in the pipeline's run form."""
    return bool(_extra(field, "form"))


def affects_result(field: FieldInfo) -> bool:
    """Return whether the setting decides what is made."""
    return _extra(field, "affects_result") is not False


def fill_in_work_directories(config: AnySettings, work: Path) -> AnySettings:
    """Return ``config`` with directories inside of ``work`` for the settings that have one and are null."""
    fields = type(config).model_fields
    directories = {name: _extra(field, "in_work") for name, field in fields.items() if getattr(config, name) is None}
    return config.model_copy(update={name: str(work / inside) for name, inside in directories.items() if inside})


def _extra(field: FieldInfo, name: str) -> Any:
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def parse_text(model: type[Settings], name: str, text: str) -> Any:
    """Return the value that a command line's ``text`` means for the setting ``name``.

    Text settings take the text as it stands ("null" clears an optional one); all others are read as YAML, so
    ``[1, 5, 10]``, ``true`` and ``3`` mean what they look like. pydantic checks the type afterwards.
    """
    field = model.model_fields.get(name)
    if field is not None and _takes_text(field.annotation):
        return None if text == "null" and is_optional(field.annotation) else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def load(model: type[Settings], values: dict[str, Any], *, stage: str) -> Any:
    """Return ``values`` as settings of ``stage``.

    Raises InputError with one line that names every wrong setting, and for an address with a password in it: settings
    stand in compiled pipelines, run forms and logs.
    """
    if exposed := [name for name, value in values.items() if _has_password(value)]:
        raise InputError(
            f"{stage}: {', '.join(exposed)}: an address with a password in it, which everyone who sees the run would "
            f"see: give the address alone, and the credentials in the environment or a Secret"
        )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{stage}: " + "; ".join(_explain(e, model) for e in error.errors())) from None


def _has_password(value: Any) -> bool:
    """Return whether any text in ``value`` is an address with a password. Shared parts (YAML aliases) are read once."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, str) and _PASSWORD.search(part):
            return True
        if isinstance(part, dict | list) and id(part) not in seen:
            seen.add(id(part))
            waiting.extend(part.values() if isinstance(part, dict) else part)
    return False


def _explain(error: Any, model: type[Settings]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, list(model.model_fields), n=1)
        return f"there is no setting '{name}'" + (f": did you mean '{close[0]}'?" if close else "")
    if error["type"] == "value_error" and not name:
        return str(error["ctx"]["error"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" or name.endswith("_env"):
        # The value may be a secret, even where the name of its variable belongs.
        return f"{name}: {message[0].lower()}{message[1:]}"
    return f"{name} = {_SHORT.repr(error['input'])}: {message[0].lower()}{message[1:]}"


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) not in (None, list, dict, tuple) else ()


def is_optional(annotation: Any) -> bool:
    """Return whether a setting of this type may be null."""
    return type(None) in _members(annotation)


def _takes_text(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Literal:
        return all(isinstance(v, str) for v in typing.get_args(annotation))
    if annotation is str:
        return True
    members = [m for m in _members(annotation) if m is not type(None)]
    return bool(members) and all(_takes_text(m) for m in members)
