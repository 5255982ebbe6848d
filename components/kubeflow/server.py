"""A Kubeflow Pipelines server: versions of pipelines, runs and their progress, recurring runs.

Takes the SDK's client from pipeline.py, so that nothing below ``components`` needs kfp itself.
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
from typing import Any

import kfp_server_api as api

from components.core.errors import InputError, Transient
from components.kubeflow.errors import asking

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0
_POLL_SECONDS = 10.0
# A long run must survive a server that restarts.
_FAILED_POLLS = 30
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
    """How runs are started: what the SDK's calls have in common."""

    experiment: str
    parameters: Mapping[str, Any]
    pipeline_root: str | None = None
    service_account: str | None = None


@dataclass(frozen=True)
class EndedRun:
    """A run at its end; ``began`` and ``ended`` are times as the names of a history's runs have them."""

    state: str
    parameters: Mapping[str, Any]
    began: str
    ended: str


class Server:
    """``client`` is a ``kfp.Client``; ``namespace`` the user's, or None on a server for one user.

    Every method raises ActionNeeded for refused access, InputError for a refused request, and Transient when the
    server does not answer.
    """

    def __init__(self, client: Any, namespace: str | None) -> None:
        self._client, self._namespace = client, namespace
        _never_wait_for_ever(client)

    def upload(self, name: str, text: str, *, version: str) -> Version:
        """Make the pipeline ``name`` have ``version`` with the compiled ``text``; again it changes nothing.

        Raises InputError when that version exists with other content.
        """
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        with asking(f"uploading {name} {version}"):
            pipeline_id = self._pipeline(name) or self._create_pipeline(name)
            found = self._version(pipeline_id, version)
            if found is None:
                found = self._upload_version(pipeline_id, version, text, digest)
                if found is not None:
                    return Version(pipeline_id, found.pipeline_version_id, created=True)
                found = self._version(pipeline_id, version)
            if found is None or digest not in (found.description or ""):
                raise InputError(f"{name} has a version {version} with other content: choose another --version")
            return Version(pipeline_id, found.pipeline_version_id, created=False)

    def start(self, name: str, text: str, launch: Launch) -> str:
        """Start a run ``name`` of the compiled ``text``; return its id."""
        with asking(f"starting {name}"), _as_file(text) as path:
            run = self._client.run_pipeline(
                self._experiment(launch.experiment),
                name,
                pipeline_package_path=str(path),
                params=dict(launch.parameters),
                pipeline_root=launch.pipeline_root,
                service_account=launch.service_account,
            )
            return _id(run.run_id)

    def wait(self, run_id: str, *, timeout: float, show: Callable[[str], None]) -> EndedRun:
        """Follow a run to its end; ``show`` gets a line whenever a task changes.

        Raises Transient after ``timeout`` seconds; the run goes on.
        """
        deadline = time.monotonic() + timeout
        states: dict[str, str] = {}
        failures = 0
        while True:
            try:
                with asking(f"following run {run_id}"):
                    run = self._client.get_run(run_id)
                    _id(run.run_id)
                failures = 0
            except Transient as error:
                failures += 1
                if failures >= _FAILED_POLLS:
                    raise
                _log.warning("%s", error)
            else:
                for line in _changes(run, states):
                    show(line)
                if run.state in _ENDED:
                    return _ended(run)
            if time.monotonic() >= deadline:
                raise Transient(f"run {run_id} has not ended after {timeout:g} s")
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))

    def schedule(self, name: str, version: Version, cron: str, launch: Launch) -> bool:
        """Make ``name`` the one recurring run of that name; return whether anything changed.

        KFP cannot change a recurring run: a new one is made before the old one goes. A paused one stays paused.
        """
        with asking(f"scheduling {name}"):
            experiment = self._experiment(launch.experiment)
            found = self._recurring(experiment, name)
            wanted = _schedule(version, cron, launch)
            kept = next((run for run in found if _schedule_of(run) == wanted), None)
            if kept is None:
                made = self._client.create_recurring_run(
                    experiment,
                    name,
                    cron_expression=cron,
                    max_concurrency=1,
                    no_catchup=True,
                    params=dict(launch.parameters),
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    enabled=not found or any(run.mode == "ENABLE" for run in found),
                    pipeline_root=launch.pipeline_root,
                    service_account=launch.service_account,
                )
                _id(made.recurring_run_id)
            for run in found:
                if run is not kept:
                    self._client.delete_recurring_run(run.recurring_run_id)
            return kept is None or len(found) > 1

    def schedules(self, experiment: str) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Name, cron expression, mode and parameters of every recurring run."""
        with asking("listing schedules"):
            found = self._recurring(self._experiment(experiment), None)
        return sorted(
            (run.display_name, _cron(run), run.mode or "", dict(run.runtime_config.parameters or {})) for run in found
        )

    def change_schedule(self, name: str, experiment: str, change: str) -> None:
        """``change`` is enable, disable or delete. Raises InputError when there is no recurring run ``name``."""
        with asking(f"{change} {name}"):
            found = self._recurring(self._experiment(experiment), name)
            if not found:
                raise InputError(f"there is no schedule '{name}' in the experiment '{experiment}': see schedule list")
            for run in found:
                getattr(self._client, f"{change}_recurring_run")(run.recurring_run_id)

    def _experiment(self, name: str) -> str:
        with contextlib.redirect_stdout(None):
            return _id(self._client.create_experiment(name, namespace=self._namespace).experiment_id)

    def _pipeline(self, name: str) -> str | None:
        found = self._client.list_pipelines(filter=_named(name), namespace=self._namespace).pipelines
        return found[0].pipeline_id if found else None

    def _create_pipeline(self, name: str) -> str:
        body = api.V2beta1Pipeline(name=name, display_name=name, namespace=self._namespace)
        try:
            return _id(self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=body).pipeline_id)
        except api.ApiException as error:
            # Another upload was quicker.
            if error.status == 409 and (found := self._pipeline(name)):
                return found
            raise

    def _version(self, pipeline_id: str, version: str) -> Any | None:
        found = self._client.list_pipeline_versions(pipeline_id, filter=_named(version)).pipeline_versions
        return found[0] if found else None

    def _upload_version(self, pipeline_id: str, version: str, text: str, digest: str) -> Any | None:
        """The new version, or None when another upload was quicker."""
        try:
            with _as_file(text) as path, contextlib.redirect_stdout(None):
                return self._client.upload_pipeline_version(
                    str(path), version, pipeline_id=pipeline_id, description=digest
                )
        except api.ApiException as error:
            if error.status == 409:
                return None
            raise

    def _recurring(self, experiment_id: str, name: str | None) -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            page = self._client.list_recurring_runs(
                page_token=token,
                page_size=_PAGE,
                experiment_id=experiment_id,
                filter=None if name is None else _named(name),
            )
            found += page.recurring_runs or []
            token = page.next_page_token or ""
            if not token:
                return found


def _id(found: str | None) -> str:
    """The SDK reads any answer as an object, with nothing in it when it is another one."""
    if not found:
        raise ValueError("an answer without an id")
    return found


def _never_wait_for_ever(client: Any) -> None:
    """The SDK sets no time-out, and offers none."""
    rest = client._run_api.api_client.rest_client
    request = rest.request

    def patient(*arguments: Any, **options: Any) -> Any:
        # For connecting and for reading; a single number that is no whole one would be ignored.
        options["_request_timeout"] = options.get("_request_timeout") or (_TIMEOUT_SECONDS, _TIMEOUT_SECONDS)
        return request(*arguments, **options)

    rest.request = patient


def _changes(run: Any, states: dict[str, str]) -> Iterator[str]:
    """A line for each task whose state is not the one in ``states``, which is brought up to date."""
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


def _ended(run: Any) -> EndedRun:
    parameters = run.runtime_config.parameters if run.runtime_config else None
    began, ended = (f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}" if at else "" for at in (run.created_at, run.finished_at))
    return EndedRun(str(run.state), parameters or {}, began, ended)


def _schedule(version: Version, cron: str, launch: Launch) -> tuple[Any, ...]:
    return (version.version_id, cron, dict(launch.parameters), launch.pipeline_root or "", launch.service_account or "")


def _schedule_of(run: Any) -> tuple[Any, ...]:
    config, version = run.runtime_config, run.pipeline_version_reference
    return (
        version.pipeline_version_id if version else None,
        _cron(run),
        dict(config.parameters or {}) if config else {},
        (config.pipeline_root if config else "") or "",
        run.service_account or "",
    )


def _cron(run: Any) -> str:
    return run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else ""


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[Path]:
    """The SDK reads pipelines from files only."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        yield path
