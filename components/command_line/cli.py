"""The command line, derived from the stages' declarations."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from components.command_line.local_runs import Run, StageRun
from components.core.artifacts import ARTIFACTS
from components.core.errors import InputError
from components.core.history import History
from components.core.kfp_io import run_from_executor_input
from components.core.settings import parse_text
from components.core.stage import Stage
from components.generated import readmes
from components.recipe.describe import DESCRIPTION, describe_workflow, format_type, format_value
from components.recipe.plan import find_setting, make_plan, resolve_settings
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, STAGES, by_name

_SETTING = "setting:"
_COMMANDS_WITHOUT_SETTINGS = ("info", "docs", "history")


@dataclass(frozen=True)
class Command:
    """A command to run; log lines carry its name."""

    name: str
    run: Callable[[], int | None]
    verbose: bool = False


class _Parser(argparse.ArgumentParser):
    """An argparse parser that reports a wrong command line in one line, as every other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def parse(argv: list[str]) -> Command:
    """Parse ``argv`` to a command. Raises InputError for unknown options and values that the settings refuse."""
    parser = _build_parser()
    # argparse takes positional arguments in one run only; NAME=VALUE may stand anywhere.
    args, rest = parser.parse_known_args(argv)
    if unknown := [
        text for text in rest if text.startswith("-") or "=" not in text or args.command in _COMMANDS_WITHOUT_SETTINGS
    ]:
        raise InputError(_describe_unknown_option(args.command, unknown[0].partition("=")[0]))
    if rest:
        args.assignments += rest
    if args.command == "info":
        return Command("info", lambda: print(describe_workflow()))
    if args.command == "history":
        return Command("history", lambda: print(_describe_history(args.uri)))
    if args.command == "docs":
        return Command("docs", lambda: readmes.write(check=args.check))
    if args.command == "run":
        return _run_command(args)
    return _stage_command(by_name(args.command), args)


def _describe_history(uri: str) -> str:
    return "\n".join(run.summary() for run in History(uri).read_runs()) or f"{uri} holds no runs"


def _run_command(args: argparse.Namespace) -> Command:
    addresses = _input_addresses(args, make_plan(args.start, args.end).stages)
    paths = _input_paths(args, _all_inputs())
    plan = make_plan(args.start, args.end, extra=[name for name in paths if name in _all_optional_inputs()])
    values = _merge_addresses(_read_settings(args, None), addresses)
    run = Run(plan, resolve_settings(plan.stages, profile_name=args.profile, values=values), args.work, paths)
    return Command("run", run.show if args.dry_run else run.execute, args.verbose)


def _stage_command(stage: Stage, args: argparse.Namespace) -> Command:
    if args.executor_input is not None:
        return Command(stage.name, lambda: run_from_executor_input(stage, args.executor_input))
    values = _merge_addresses(_read_settings(args, stage), _input_addresses(args, [stage]))
    config = resolve_settings([stage], profile_name=args.profile, values=values)[stage.name]
    paths = _input_paths(args, stage.inputs + stage.optional_inputs + stage.by_uri)
    run = StageRun(stage, config, args.work, paths)
    if stage.previews and args.preview and not args.dry_run:
        return Command(stage.name, run.show_sample, args.verbose)
    return Command(stage.name, run.show if args.dry_run else run.execute, args.verbose)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m components", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage in STAGES:
        sub = _add_subcommand(commands, stage.name, stage.summary)
        sub.add_argument("--executor-input", metavar="JSON", help="run as a KFP task; the launcher fills this in")
        if stage.previews:
            sub.add_argument("--preview", action="store_true", help="show what the first document gives; write nothing")
        for name in stage.inputs + stage.optional_inputs + stage.by_uri:
            _add_artifact_option(sub, name, default=f"WORK/{name}")
        group = sub.add_argument_group("settings", "written as --name VALUE or name=VALUE")
        for name, field in stage.config.model_fields.items():
            group.add_argument(
                f"--{name.replace('_', '-')}",
                dest=_SETTING + name,
                metavar=format_type(field.annotation),
                help=f"{field.description} (default: {format_value(field.default)})".replace("%", "%%"),
            )
    run = _add_subcommand(commands, "run", "Run stages one after the other on this machine")
    run.add_argument("--from", dest="start", choices=NAMES, default=NAMES[0], help="first stage (default: sdg)")
    run.add_argument("--to", dest="end", choices=NAMES, default=NAMES[-1], help="last stage (default: deploy)")
    for name in _all_inputs():
        _add_artifact_option(run, name, default=f"WORK/{name}, when no chosen stage makes it")
    commands.add_parser("info", help="Show the stages, what they read and make, and the profiles")
    history = commands.add_parser("history", help="Show the recurring runs that share a history_uri, oldest first")
    history.add_argument("uri", metavar="URI", help="their history_uri")
    docs_parser = commands.add_parser("docs", help="Write the generated tables of the stages' READMEs")
    docs_parser.add_argument("--check", action="store_true", help="write nothing; exit 2 when a file is not up to date")
    return parser


def _describe_unknown_option(command: str, option: str) -> str:
    name = option.lstrip("-").replace("-", "_")
    if command == "run" and any(name in stage.config.model_fields for stage in STAGES):
        return f"{option} is no option of run: write the setting as {name}=VALUE"
    known = _all_inputs() if command == "run" else ()
    if command in NAMES:
        stage = by_name(command)
        known = (*stage.config.model_fields, *stage.inputs, *stage.optional_inputs, *stage.by_uri)
    close = difflib.get_close_matches(name, known, n=1)
    return f"there is no option {option}" + (f": did you mean --{close[0].replace('_', '-')}?" if close else "")


def _add_subcommand(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    sub.add_argument("--work", type=Path, default=Path("work"), metavar="DIR", help="artifacts lie in DIR/NAME")
    sub.add_argument("--profile", choices=sorted(PROFILES), default="llama", help="set of values (default: llama)")
    sub.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    sub.add_argument("--dry-run", action="store_true", help="show settings, inputs and outputs; do nothing")
    sub.add_argument("--verbose", action="store_true", help="debug lines, and a traceback with every error")
    sub.add_argument("assignments", nargs="*", metavar="NAME=VALUE", help="settings; STAGE.NAME=VALUE for one stage")
    return sub


def _add_artifact_option(parser: argparse.ArgumentParser, name: str, *, default: str) -> None:
    fetched = any(name in stage.replaced_by for stage in STAGES)
    text = f"{ARTIFACTS[name].summary} (default: {default})"
    text += "; s3://, gs://, minio:// and hf://DATASET@COMMIT/FOLDER are fetched" if fetched else ""
    kind = _path_or_address if fetched else Path
    metavar = "PATH|URI" if fetched else "PATH"
    parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar=metavar, help=text)


def _path_or_address(text: str) -> Path | str:
    """Return an address as text, since Path would remove a slash of it, and everything else as a path."""
    return text if "://" in text else Path(text)


def _input_paths(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Path]:
    return {name: path for name in names if isinstance(path := getattr(args, name), Path)}


def _input_addresses(args: argparse.Namespace, stages: Iterable[Stage]) -> dict[str, Any]:
    """Return the inputs that were given as an address, as the settings that replace them."""
    return {
        f"{stage.name}.{setting}": [{"uri": address}]
        for stage in stages
        for name, setting in stage.replaced_by.items()
        if isinstance(address := getattr(args, name), str)
    }


def _merge_addresses(values: dict[str, Any], addresses: dict[str, Any]) -> dict[str, Any]:
    for key in addresses:
        if {key, key.rpartition(".")[2]} & values.keys():
            raise InputError(f"an address as input and {key} as setting: write the address into {key} as well")
    return values | addresses


def _all_inputs() -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for s in STAGES for n in s.inputs + s.optional_inputs + s.by_uri))


def _all_optional_inputs() -> set[str]:
    return {name for stage in STAGES for name in stage.optional_inputs} - {n for s in STAGES for n in s.outputs}


def _read_settings(args: argparse.Namespace, stage: Stage | None) -> dict[str, Any]:
    """Return the settings of the file and of the command line, which wins. Raises InputError for unknown settings."""
    values: dict[str, Any] = {}
    for text in args.assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}' is not NAME=VALUE")
        key = key.removeprefix("--").replace("-", "_")
        values[key] = _parse_value(key, value, stage)
    for key, value in vars(args).items():
        if key.startswith(_SETTING) and value is not None:
            name = key.removeprefix(_SETTING)
            values[name] = _parse_value(name, value, stage)
    file = _read_config_file(args.config) if args.config else {}
    # STAGE.NAME of the file would win over NAME of the command line.
    return {key: value for key, value in file.items() if key.rpartition(".")[2] not in values} | values


def _parse_value(key: str, text: str, stage: Stage | None) -> Any:
    owner, name = (stage, key) if stage and "." not in key else find_setting(key)
    return parse_text(owner.config, name, text)


def _read_config_file(path: Path) -> dict[str, Any]:
    """Read YAML of ``stage: {setting: value}`` and ``setting: value``; keys are ``stage.setting`` or ``setting``."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {path} holds {type(content).__name__}: expected names and values")
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in NAMES and isinstance(value, dict):
            values |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            values[str(key)] = value
    return values
