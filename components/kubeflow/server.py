"""Client of a Kubeflow Pipelines server: pipeline versions, runs and their progress, recurring runs.

pipeline.py passes in the SDK's client, so that nothing below ``components`` needs kfp itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Literal

import kfp_server_api as api
from kfp_server_api.rest import RESTClientObject

from components.core.errors import InputError, Transient
from components.kubeflow.errors import translate_errors

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 10.0
# A long run must survive a server that restarts.
_FAILED_POLLS = 30
ScheduleChange = Literal["pause", "resume", "delete"]
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_PAGE = 100


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server; ``created`` is False when it was there already."""

    pipeline_id: str
    version_id: str
    created: bool


@dataclass(frozen=True)
class Launch:
    """Arguments that single runs and recurring runs are started with."""

    experiment: str
    parameters: Mapping[str, Any]
    pipeline_root: str | None = None
    service_account: str | None = None


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended.

    ``began`` and ``ended`` are UTC times in the form that names of a history's runs start with, "" where unknown.
    """

    state: str
    parameters: Mapping[str, Any]
    began: str
    ended: str


class Server:
    """Client of one server, for one namespace.

    ``client`` is a ``kfp.Client``; ``namespace`` is None on a single-user server. Every method raises
    ActionNeeded for refused access, InputError for a refused request, and Transient when the server does not answer.
    """

    def __init__(self, client: Any, namespace: str | None) -> None:
        self._client, self._namespace = client, namespace
        # All services of the SDK's client share one ApiClient.
        client.runs.api_client.rest_client = _RestClientWithTimeout(client.runs.api_client.configuration)

    def upload(self, name: str, text: str, *, version: str) -> Version:
        """Upload the compiled ``text`` as ``version`` of the pipeline ``name``, unless it is there already.

        Raises InputError when that version exists with other content.
        """
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        with translate_errors(f"uploading {name} {version}"):
            pipeline_id = self._find_pipeline(name) or self._create_pipeline(name)
            existing = self._find_version(pipeline_id, version)
            if existing is None:
                uploaded = self._upload_version(pipeline_id, version, text, digest)
                if uploaded is not None:
                    return Version(pipeline_id, uploaded.pipeline_version_id, created=True)
                existing = self._find_version(pipeline_id, version)
            if existing is None or digest not in (existing.description or ""):
                raise InputError(f"{name} has a version {version} with other content: choose another --version")
            return Version(pipeline_id, existing.pipeline_version_id, created=False)

    def start(self, name: str, text: str, launch: Launch) -> str:
        """Start a run ``name`` of the compiled ``text``; return its id."""
        with translate_errors(f"starting {name}"), _as_file(text) as path:
            run = self._client.run_pipeline(
                self._experiment(launch.experiment),
                name,
                pipeline_package_path=str(path),
                params=dict(launch.parameters),
                pipeline_root=launch.pipeline_root,
                service_account=launch.service_account,
            )
            return _require_id(run.run_id)

    def wait(self, run_id: str, *, timeout: float, show: Callable[[str], None]) -> EndedRun:
        """Follow a run to its end; ``show`` gets a line whenever a task changes.

        Raises Transient after ``timeout`` seconds; the run goes on.
        """
        deadline = time.monotonic() + timeout
        states: dict[str, str] = {}
        failures = 0
        while True:
            try:
                with translate_errors(f"following run {run_id}"):
                    run = self._client.get_run(run_id)
                    _require_id(run.run_id)
                failures = 0
            except Transient as error:
                failures += 1
                if failures >= _FAILED_POLLS:
                    raise
                _log.warning("%s", error)
            else:
                for line in _describe_changes(run, states):
                    show(line)
                if run.state in _ENDED:
                    return _end_run(run)
            if time.monotonic() >= deadline:
                raise Transient(f"run {run_id} has not ended after {timeout:g} s")
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def schedule(self, name: str, version: Version, cron: str, launch: Launch) -> bool:
        """Make ``name`` the one recurring run of that name; return whether anything changed.

        KFP cannot change a recurring run: a new one is made before the old one goes. A paused one stays paused.
        """
        with translate_errors(f"scheduling {name}"):
            experiment = self._experiment(launch.experiment)
            existing = self._list_recurring_runs(experiment, name)
            schedule = _describe_schedule(version, cron, launch)
            unchanged = next((run for run in existing if _read_schedule(run) == schedule), None)
            if unchanged is None:
                created = self._client.create_recurring_run(
                    experiment,
                    name,
                    cron_expression=cron,
                    max_concurrency=1,
                    no_catchup=True,
                    params=dict(launch.parameters),
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    enabled=not existing or any(run.mode == "ENABLE" for run in existing),
                    pipeline_root=launch.pipeline_root,
                    service_account=launch.service_account,
                )
                _require_id(created.recurring_run_id)
            for run in existing:
                if run is not unchanged:
                    self._client.delete_recurring_run(run.recurring_run_id)
            return unchanged is None or len(existing) > 1

    def list_schedules(self, experiment: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return name, cron expression, mode and parameters of every recurring run, sorted by name."""
        with translate_errors("listing schedules"):
            runs = self._list_recurring_runs(self._experiment(experiment), None)
        return sorted(
            (run.display_name, _read_cron(run), run.mode or "", dict(run.runtime_config.parameters or {}))
            for run in runs
        )

    def change_schedule(self, name: str, experiment: str, change: ScheduleChange) -> None:
        """Pause, resume or delete the recurring run ``name``. Raises InputError when there is none."""
        calls = {
            "pause": self._client.disable_recurring_run,
            "resume": self._client.enable_recurring_run,
            "delete": self._client.delete_recurring_run,
        }
        with translate_errors(f"{change} {name}"):
            runs = self._list_recurring_runs(self._experiment(experiment), name)
            if not runs:
                raise InputError(f"there is no schedule '{name}' in the experiment '{experiment}': see schedule list")
            for run in runs:
                calls[change](run.recurring_run_id)

    def _experiment(self, name: str) -> str:
        with contextlib.redirect_stdout(None):
            return _require_id(self._client.create_experiment(name, namespace=self._namespace).experiment_id)

    def _find_pipeline(self, name: str) -> str | None:
        pipelines = self._client.list_pipelines(filter=_filter_by_name(name), namespace=self._namespace).pipelines
        return str(pipelines[0].pipeline_id) if pipelines else None

    def _create_pipeline(self, name: str) -> str:
        body = api.V2beta1Pipeline(name=name, display_name=name, namespace=self._namespace)
        try:
            return _require_id(self._client.pipelines.pipeline_service_create_pipeline(pipeline=body).pipeline_id)
        except api.ApiException as error:
            # Another upload was quicker.
            if error.status == 409 and (pipeline_id := self._find_pipeline(name)):
                return pipeline_id
            raise

    def _find_version(self, pipeline_id: str, version: str) -> Any | None:
        listing = self._client.list_pipeline_versions(pipeline_id, filter=_filter_by_name(version))
        return listing.pipeline_versions[0] if listing.pipeline_versions else None

    def _upload_version(self, pipeline_id: str, version: str, text: str, digest: str) -> Any | None:
        """Return the new version, or None when another upload was quicker."""
        try:
            with _as_file(text) as path, contextlib.redirect_stdout(None):
                return self._client.upload_pipeline_version(
                    str(path), version, pipeline_id=pipeline_id, description=digest
                )
        except api.ApiException as error:
            if error.status == 409:
                return None
            raise

    def _list_recurring_runs(self, experiment_id: str, name: str | None) -> list[Any]:
        runs: list[Any] = []
        token = ""
        while True:
            page = self._client.list_recurring_runs(
                page_token=token,
                page_size=_PAGE,
                experiment_id=experiment_id,
                filter=None if name is None else _filter_by_name(name),
            )
            runs += page.recurring_runs or []
            token = page.next_page_token or ""
            if not token:
                return runs


class _RestClientWithTimeout(RESTClientObject):  # type: ignore[misc]  # kfp_server_api has no types
    """The REST client of the SDK, with a time-out for requests that name none: the SDK would wait for ever."""

    def request(self, *arguments: Any, **options: Any) -> Any:
        # For connecting and for reading; a single number that is no whole one would be ignored.
        options["_request_timeout"] = options.get("_request_timeout") or (_TIMEOUT_SECONDS, _TIMEOUT_SECONDS)
        return super().request(*arguments, **options)


def _require_id(value: str | None) -> str:
    """Return ``value``. Raises ValueError for an empty one: the SDK reads any JSON answer as an object without values.

    A login page, for instance, becomes a run without an id.
    """
    if not value:
        raise ValueError("an answer without an id")
    return value


def _describe_changes(run: Any, states: dict[str, str]) -> Iterator[str]:
    """Yield a line for each task whose state differs from the one in ``states``, and update ``states``."""
    tasks = (run.run_details.task_details or []) if run.run_details else []
    for task in tasks:
        # Drivers and groups have names of their own, and no one waits for them.
        if not task.display_name or task.display_name.endswith("-driver") or task.state is None:
            continue
        if states.get(task.display_name) != task.state:
            states[task.display_name] = task.state
            problem = f": {task.error.message}" if task.error and task.error.message else ""
            yield f"{task.display_name}: {task.state.lower()}{problem}"
    if states.get("") != run.state:
        states[""] = run.state
        problem = f": {run.error.message}" if run.error and run.error.message else ""
        yield f"run: {str(run.state).lower()}{problem}"


def _end_run(run: Any) -> EndedRun:
    parameters = run.runtime_config.parameters if run.runtime_config else None
    began, ended = (f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}" if at else "" for at in (run.created_at, run.finished_at))
    return EndedRun(str(run.state), parameters or {}, began, ended)


def _describe_schedule(version: Version, cron: str, launch: Launch) -> tuple[Any, ...]:
    return (version.version_id, cron, dict(launch.parameters), launch.pipeline_root or "", launch.service_account or "")


def _read_schedule(run: Any) -> tuple[Any, ...]:
    config, version = run.runtime_config, run.pipeline_version_reference
    return (
        version.pipeline_version_id if version else None,
        _read_cron(run),
        dict(config.parameters or {}) if config else {},
        (config.pipeline_root if config else "") or "",
        run.service_account or "",
    )


def _read_cron(run: Any) -> str:
    return str(run.trigger.cron_schedule.cron) if run.trigger and run.trigger.cron_schedule else ""


def _filter_by_name(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[Path]:
    """The SDK reads pipelines from files only."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        yield path
