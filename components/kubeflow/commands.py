"""Commands of pipeline.py that need a Kubeflow Pipelines server: submit, wait, upload, schedule."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from components import __version__
from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.history import History
from components.kubeflow.options import (
    add_command,
    add_compile_options,
    add_run_options,
    add_server_options,
    add_start,
    add_timeout,
    choose_pipeline,
    choose_run,
)
from components.kubeflow.run_form import Options
from components.kubeflow.server import EndedRun, Launch, ScheduleChange, Server
from components.recipe.plan import Plan, pipeline_name

_CHANGED: dict[ScheduleChange, str] = {"pause": "paused", "resume": "resumed", "delete": "deleted"}


@dataclass(frozen=True)
class ServerCommands:
    """The commands, given what needs kfp: ``compile_plan`` makes the YAML of a pipeline, ``connect`` a client of the
    server that the options name."""

    compile_plan: Callable[[Plan, Options], str]
    connect: Callable[[argparse.Namespace], Server]

    def add_to(self, commands: Any) -> None:
        """Add the commands to those of the command line."""
        sub = add_command(commands, "submit", self._submit, "Start a run")
        add_run_options(sub)
        sub.add_argument("--run-name", metavar="NAME", help="default: the pipeline's name and the time")
        sub.add_argument("--wait", action="store_true", help="follow the run; exit 3 when it does not succeed")
        add_timeout(sub, "of --wait")
        sub.add_argument("--dry-run", action="store_true", help="check the parameters and show them; start nothing")

        sub = add_command(commands, "wait", self._wait, "Follow a run; exit 3 when it does not succeed")
        sub.add_argument("run_id", metavar="RUN_ID", help="as submit prints it, and the address of the run's page ends")
        add_timeout(sub, "until it is given up, with exit code 75")
        add_server_options(sub)

        sub = add_command(commands, "upload", self._upload, "Make a version of the pipeline on the server")
        add_start(sub)
        add_compile_options(sub)
        add_server_options(sub)
        sub.add_argument("--version", default=__version__, help=f"name of the version (default: {__version__})")

        schedules = commands.add_parser("schedule", help="Recurring runs")
        self._add_schedules(schedules.add_subparsers(dest="action", required=True))

    def _add_schedules(self, commands: Any) -> None:
        sub = add_command(commands, "create", self._schedule, "Create a recurring run, or change the one of that name")
        sub.add_argument("name", help="name of the recurring run")
        sub.add_argument(
            "--cron", required=True, help="when: six fields, seconds first, or the usual five; UTC: '0 2 * * *'"
        )
        sub.add_argument(
            "--version", default=__version__, help=f"version of the pipeline to pin (default: {__version__})"
        )
        add_run_options(sub)
        sub = add_command(commands, "list", self._list_schedules, "Every recurring run of the experiment")
        add_server_options(sub, experiment=True)
        changes: tuple[tuple[ScheduleChange, str], ...] = (
            ("pause", "Start no more runs"),
            ("resume", "Start runs again"),
            ("delete", "Delete a recurring run; the runs that it started stay"),
        )
        for change, text in changes:
            sub = add_command(commands, change, self._change_schedule, text)
            sub.add_argument("name", help="name of the recurring run")
            sub.set_defaults(change=change)
            add_server_options(sub, experiment=True)

    def _submit(self, args: argparse.Namespace) -> int:
        plan, options, parameters = choose_run(args)
        name = args.run_name or f"{pipeline_name(plan)} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        if args.dry_run:
            print(yaml.safe_dump(parameters, sort_keys=False), end="")
            return 0
        server = self.connect(args)
        run_id = server.start(name, self.compile_plan(plan, options), _make_launch(args, parameters))
        print(f"Run id: {run_id}", flush=True)
        return _follow(server, run_id, args.timeout) if args.wait else 0

    def _wait(self, args: argparse.Namespace) -> int:
        return _follow(self.connect(args), args.run_id, args.timeout)

    def _upload(self, args: argparse.Namespace) -> int:
        plan, options = choose_pipeline(args)
        name = pipeline_name(plan)
        version = self.connect(args).upload(name, self.compile_plan(plan, options), version=args.version)
        print(f"{name} {args.version}: {'uploaded' if version.created else 'is there already'}")
        return 0

    def _schedule(self, args: argparse.Namespace) -> int:
        plan, options, parameters = choose_run(args)
        cron = _normalize_cron(args.cron)
        server = self.connect(args)
        version = server.upload(pipeline_name(plan), self.compile_plan(plan, options), version=args.version)
        changed = server.schedule(args.name, version, cron, _make_launch(args, parameters))
        print(f"{args.name}: {'scheduled' if changed else 'is scheduled so already'} ({cron})")
        return 0

    def _list_schedules(self, args: argparse.Namespace) -> int:
        for name, cron, mode, parameters in self.connect(args).list_schedules(args.experiment):
            state = "paused" if mode == "DISABLE" else "active"
            print(f"{name}  {cron}  {state}  {parameters.get('corpus_uri', '')}".rstrip())
        return 0

    def _change_schedule(self, args: argparse.Namespace) -> int:
        self.connect(args).change_schedule(args.name, args.experiment, args.change)
        print(f"{args.name}: {_CHANGED[args.change]}")
        return 0


def _follow(server: Server, run_id: str, timeout: float) -> int:
    """Print the progress and the figures of a run. Raises ActionNeeded when it does not succeed."""
    goes_on = f"the run goes on, and `python pipeline.py wait {run_id}` follows it"
    try:
        run = server.wait(run_id, timeout=timeout, show=lambda line: print(line, flush=True))
    except Transient as error:
        raise Transient(f"{error}; {goes_on}") from None
    except KeyboardInterrupt:
        raise Transient(f"interrupted; {goes_on}") from None
    for line in _describe_figures(run):
        print(line)
    if run.state != "SUCCEEDED":
        raise ActionNeeded(f"run {run_id} ended as {run.state}: its page shows the task and its log")
    return 0


def _describe_figures(run: EndedRun) -> list[str]:
    """Return the figures of the run, a line each, from the history: KFP's API has no metrics."""
    history_uri = run.parameters.get("history_uri")
    if not history_uri:
        return []
    try:
        records = History(history_uri).read_runs(since=run.began)
    except (StageError, ImportError) as error:
        return [f"figures: {history_uri} cannot be read from here ({error})"]
    # Names of a history's runs begin with the time at which they began.
    return [record.summary() for record in records if not run.ended or record.name.partition("-")[0] <= run.ended]


def _make_launch(args: argparse.Namespace, parameters: Mapping[str, Any]) -> Launch:
    return Launch(args.experiment, parameters, args.pipeline_root, args.service_account)


def _normalize_cron(text: str) -> str:
    """Return ``text`` as the six fields that KFP takes. Raises InputError if it is not a cron expression."""
    fields = text.split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6 or not all(re.fullmatch(r"[\w*/,?#-]+", field) for field in fields):
        raise InputError(
            f"--cron '{text}': expected five fields, or six with seconds first: '0 2 * * *' is daily at two"
        )
    return " ".join(fields)
