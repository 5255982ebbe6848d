"""Figures of training for TensorBoard, Weights & Biases and MLflow: beside the training and never in its way."""

from __future__ import annotations

import importlib
import logging
import os
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from components.core.store import open_store
from components.core.store.directory import DirectoryStore
from components.core.store.errors import summarize_error

_log = logging.getLogger(__name__)
_WAITING = 100_000  # figures kept for a tracker that is slow
_UPLOAD_SECONDS = 30.0
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PROJECT = "nemotron-embed"
Figures = Mapping[str, float]


class Tracker(Protocol):
    """Takes figures somewhere. Any method may raise anything; nothing is called after that."""

    name: str
    needs: str
    """The package that it is written for."""

    def open(self, package: Any, settings: Mapping[str, Any]) -> None: ...

    def log(self, step: int, figures: Figures) -> None: ...

    def close(self, complete: bool) -> None: ...


def wanted_trackers(tensorboard_uri: str | None) -> list[Tracker]:
    """Those that the settings or the environment ask for."""
    trackers: list[Tracker] = [TensorBoard(tensorboard_uri)] if tensorboard_uri else []
    if os.environ.get("WANDB_API_KEY"):
        trackers.append(WeightsAndBiases())
    if os.environ.get("MLFLOW_TRACKING_URI"):
        trackers.append(MLflow())
    return trackers


class Trackers:
    """Hands figures over to each tracker in a thread of its own.

    A tracker that fails, hangs or is not installed costs a warning and its own figures, never the training: nothing
    here raises or waits, except ``close``, at most ``patience`` seconds in all.
    """

    def __init__(self, trackers: list[Tracker], settings: Mapping[str, Any], *, patience: float = 30.0) -> None:
        self._patience = patience
        self._lanes = [_Lane(tracker, settings) for tracker in trackers]

    def log(self, step: int, figures: Figures) -> None:
        """``figures`` after optimizer step ``step``."""
        for lane in self._lanes:
            lane.put((step, dict(figures)))

    def close(self, *, complete: bool = True) -> None:
        """Let all that was logged arrive. ``complete``: whether the training came to its end."""
        for lane in self._lanes:
            lane.put(complete)
        until = time.monotonic() + self._patience
        for lane in self._lanes:
            lane.thread.join(max(0.0, until - time.monotonic()))
            if lane.thread.is_alive():
                _log.warning("%s did not take all figures within %g s", lane.tracker.name, self._patience)


class _Lane:
    def __init__(self, tracker: Tracker, settings: Mapping[str, Any]) -> None:
        self.tracker, self._settings = tracker, settings
        self._queue: queue.Queue[tuple[int, Figures] | bool] = queue.Queue(_WAITING)
        self.thread = threading.Thread(target=self._run, name=f"tracker {tracker.name}", daemon=True)
        self.thread.start()

    def put(self, item: tuple[int, Figures] | bool) -> None:
        # Full only when the tracker has hung for long: newer figures are then lost.
        if self.thread.is_alive() and not self._queue.full():
            self._queue.put_nowait(item)

    def _run(self) -> None:
        try:
            self._report()
        except ModuleNotFoundError as error:
            _log.warning("nothing goes to %s: the package %s is not installed", self.tracker.name, error.name)
        except Exception as error:  # whatever a client library or its server comes up with
            _log.warning("nothing more goes to %s, training goes on: %s", self.tracker.name, _without_secrets(error))

    def _report(self) -> None:
        self.tracker.open(importlib.import_module(self.tracker.needs), self._settings)
        _log.info("figures go to %s", self.tracker.name)
        while True:
            item = self._queue.get()
            if isinstance(item, bool):
                self.tracker.close(item)
                return
            self.tracker.log(*item)


def _without_secrets(error: Exception) -> str:
    text = f"{type(error).__name__}: {summarize_error(error)}"
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)


class TensorBoard:
    """Event files below ``uri``, a directory or a bucket's prefix: one folder per run, named by its start."""

    name, needs = "TensorBoard", "torch.utils.tensorboard"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._uploaded = 0.0

    def open(self, package: Any, settings: Mapping[str, Any]) -> None:
        self._store = open_store(self._uri, setting="tensorboard_uri")
        model = re.sub(r"[^\w.-]+", "-", str(settings["base_model"]))[-60:].strip("-")
        self._run = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{model}"
        # A directory is written to as it is: TensorBoard follows a file that grows, not one that is replaced.
        self._in_place = isinstance(self._store, DirectoryStore)
        place = Path(self._uri.removeprefix("file://")) / self._run
        self._folder = place if self._in_place else Path(tempfile.mkdtemp(prefix="tensorboard-"))
        self._writer = package.SummaryWriter(str(self._folder))
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")
        self._upload()

    def log(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self._upload()

    def close(self, complete: bool) -> None:  # noqa: ARG002
        self._upload()
        self._writer.close()
        if not self._in_place:
            shutil.rmtree(self._folder)

    def _upload(self) -> None:
        """What is written so far; in a bucket each object is replaced by a longer one."""
        self._writer.flush()
        for path in [] if self._in_place else sorted(self._folder.iterdir()):
            self._store.write(f"{self._run}/{path.name}", path.read_bytes())
        self._uploaded = time.monotonic()


class WeightsAndBiases:
    """A run of Weights & Biases; its client reads WANDB_* from the environment."""

    name, needs = "Weights & Biases", "wandb"

    def open(self, package: Any, settings: Mapping[str, Any]) -> None:
        # Figures and settings only: nothing of the console, the code or the host.
        quiet = package.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True)
        folder = os.environ.get("WANDB_DIR") or tempfile.mkdtemp(prefix="wandb-")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = package.init(project=project, config=dict(settings), dir=folder, settings=quiet)

    def log(self, step: int, figures: Figures) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


class MLflow:
    """A run of MLflow; its client reads MLFLOW_* from the environment."""

    name, needs = "MLflow", "mlflow"

    def open(self, package: Any, settings: Mapping[str, Any]) -> None:
        self._entities = package.entities
        self._client = package.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(number).info.run_id
        parameters = [self._entities.Param(key, str(value)[:500]) for key, value in settings.items()]
        self._client.log_batch(self._id, params=parameters)

    def log(self, step: int, figures: Figures) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "FAILED")
