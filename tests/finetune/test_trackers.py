"""Figures reach TensorBoard, Weights & Biases and MLflow; whatever happens to those, training does not notice."""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch.utils.tensorboard  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.core.store import open_store
from components.finetune.observe.trackers import MLflow, TensorBoard, Trackers, WeightsAndBiases, wanted_trackers
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

SETTINGS = {"base_model": "nvidia/some-model", "num_epochs": 3, "learning_rate": 1e-5}
STEPS = [(1, {"loss": 2.5, "mfu": 0.5}), (2, {"loss": 1.5, "mfu": 0.6}), (3, {"loss": 1.0, "mfu": 0.6, "val": 0.75})]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def report(trackers: list[Any], *, complete: bool = True, patience: float = LIMIT_SECONDS) -> None:
    tracked = Trackers(trackers, SETTINGS, patience=patience)
    for step, figures in STEPS:
        tracked.log(step, figures)
    tracked.close(complete=complete)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)] for name in names}


def test_tensorboard_reads_every_figure_from_a_directory(tmp_path: Path) -> None:
    report(wanted_trackers(str(tmp_path / "runs")))
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("nvidia-some-model")
    found = scalars(run)
    assert found["loss"] == [(1, 2.5), (2, 1.5), (3, 1.0)]
    assert found["val"] == [(3, 0.75)]


def test_tensorboard_reads_every_figure_from_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is no directory, behind which the files lie in one."""
    inner = open_store(str(tmp_path / "bucket"), setting="x")

    class Bucket:
        def write(self, name: str, body: bytes) -> None:
            inner.write(name, body)

    monkeypatch.setattr("components.finetune.observe.trackers.open_store", lambda uri, setting: Bucket())
    monkeypatch.setattr("components.finetune.observe.trackers._UPLOAD_SECONDS", 0.0)
    report([TensorBoard("s3://bucket/runs")])
    (run,) = (tmp_path / "bucket").iterdir()
    assert scalars(run)["loss"] == [(1, 2.5), (2, 1.5), (3, 1.0)]


RUN = {"info": {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING"}, "data": {}}


class Server(BaseHTTPRequestHandler):
    """The part of MLflow's REST API that a run needs. It keeps what it is sent."""

    calls: list[tuple[str, dict[str, Any]]]

    def do_GET(self) -> None:
        if "runs/get" in self.path:
            return self._answer(200, {"run": RUN})
        self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.path.rpartition("2.0/mlflow/")[2]
        self.calls.append((what, body))
        answers = {"experiments/create": {"experiment_id": "7"}, "runs/create": {"run": RUN}}
        self._answer(200, answers.get(what, {"run_info": RUN["info"]}))

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def mlflow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    Server.calls = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield Server.calls
    server.shutdown()


@pytest.mark.parametrize(("complete", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_mlflow_gets_settings_figures_and_the_outcome(mlflow_server, complete: bool, status: str) -> None:
    (tracker,) = wanted_trackers(None)
    assert isinstance(tracker, MLflow)
    report([tracker], complete=complete)
    sent = [body for what, body in mlflow_server if what == "runs/log-batch"]
    assert {p["key"]: p["value"] for p in sent[0]["params"]}["num_epochs"] == "3"
    losses = [(m["step"], m["value"]) for body in sent[1:] for m in body["metrics"] if m["key"] == "loss"]
    assert losses == [(1, 2.5), (2, 1.5), (3, 1.0)]
    assert mlflow_server[-1][1]["status"] == status


def test_weights_and_biases_gets_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, its client writes what it would send to a file of its own."""
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tracker,) = wanted_trackers(None)
    assert isinstance(tracker, WeightsAndBiases)
    report([tracker])
    (file,) = tmp_path.rglob("run-*.wandb")
    # A process of its own writes it, some of it after the run is finished.
    wait_for(lambda: all(name in file.read_bytes() for name in (b"loss", b"mfu", b"learning_rate")))
    assert b"x" * 40 not in file.read_bytes()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def find(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(importlib, "import_module", find)
    report(wanted_trackers(None))
    assert "nothing goes to Weights & Biases: the package wandb is not installed" in caplog.text


def test_a_server_that_is_down_costs_a_warning_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    report(wanted_trackers(None))
    assert "nothing more goes to MLflow, training goes on" in caplog.text
    assert "geheim" not in caplog.text


class Broken:
    """Fails, or hangs until ``released``, where it is told to."""

    name, needs = "Broken", "json"

    def __init__(self, where: str, hangs: bool) -> None:
        self.where, self.hangs, self.released = where, hangs, threading.Event()

    def _at(self, place: str) -> None:
        if place == self.where and self.hangs:
            self.released.wait()
        if place == self.where:
            raise RuntimeError(f"broken at {place}")

    def open(self, package: Any, settings: Mapping[str, Any]) -> None:
        self._at("open")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._at("log")

    def close(self, complete: bool) -> None:
        self._at("close")


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_broken_tracker_holds_up_neither_training_nor_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, hangs: bool
) -> None:
    caplog.set_level(logging.WARNING)
    broken = Broken(where, hangs)
    # It is released only afterwards: whoever waited for it would wait for ever.
    report([broken, TensorBoard(str(tmp_path))], patience=0.1 if hangs else LIMIT_SECONDS)
    assert ("Broken did not take all figures" if hangs else f"broken at {where}") in caplog.text
    broken.released.set()
    wait_for(lambda: not any(thread.name.startswith("tracker ") for thread in threading.enumerate()))
    (run,) = tmp_path.iterdir()
    assert scalars(run)["loss"][-1] == (3, 1.0)
