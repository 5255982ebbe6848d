"""A run that is killed, interrupted, hangs or runs out of memory ends as if nothing had happened."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.resume import Run, compare_exactly, kill_at_random, kill_in_save, survive
from components.core.encoder.checkpoint import load_base
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError, Transient
from components.core.store import open_store
from components.finetune import trainer as trainer_module
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import read_training_data
from components.finetune.gradients.padded_gradient import PaddedGradient
from components.finetune.gradients.step_gradient import StepGradient
from components.finetune.model import weights_digest
from components.finetune.resume.checkpoints import Checkpoints
from components.finetune.resume.identity import identity
from components.finetune.resume.interruption import Watchdog
from tests.finetune.training import finetune, log, records, settings, texts, write_data
from tests.storage.s3_server import s3_server
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

EXAMPLES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data", records(EXAMPLES), texts(EXAMPLES))


def weights(work: Path) -> bytes:
    return (work / "checkpoint" / "model.safetensors").read_bytes()


def trace(work: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in step.items() if k != "tokens_per_second"} for step in log(work)]


class Stopped(Exception):
    """Stands for the end of the process."""


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise ``error`` before the gradient of ``step`` (from 1) is used; earlier saves are finished."""
    add = StepGradient.compute

    def counted(self: Any, number: int, rows: Any) -> Any:
        if number + 1 == step:
            raise error
        return add(self, number, rows)

    monkeypatch.setattr(StepGradient, "compute", counted)


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_killed_runs_end_with_the_weights_of_an_unkilled_one(
    where: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    """benchmarks/resume.py does it fifty times."""
    draw = random.Random(1)
    given = [f"base_model={tiny}", "global_batch_size=3", "num_epochs=4", "learning_rate=1e-3", "temperature=0.1"]
    given += ["checkpoint_every_steps=1", "checkpoint_every_seconds=null", "query_max_length=16"]
    whole = Run(data, tmp_path / "whole", given)
    process = whole.start()
    process.join()
    assert process.exitcode == 0, whole.tail()
    assert len(whole.trace()) == 16
    if where == "folder":
        strikes = [("aimed", kill_in_save(draw)), ("random", kill_at_random(2, draw)), ("aimed", kill_in_save(draw))]
        tally = survive(lambda n: Run(data, tmp_path / f"run{n}", given), iter(strikes), compare_exactly(whole))
        assert tally.torn > 0
    else:
        with s3_server() as server:

            def in_bucket(number: int) -> Run:
                run = Run(data, tmp_path / f"run{number}", given, server.environment)
                run.arguments.append(f"checkpoint_uri=s3://bucket/run{number}")
                return run

            def kill_after_objects(run: Run, process: Any) -> bool:
                wanted = len(server.objects) + draw.randint(4, 12)
                while process.is_alive() and len(server.objects) < wanted:
                    time.sleep(0.001)
                process.kill()
                process.join()
                return process.exitcode == -signal.SIGKILL

            strikes = [("aimed", kill_after_objects)] * 2
            tally = survive(in_bucket, iter(strikes), compare_exactly(whole))
    assert tally.kills == len(strikes)
    assert tally.differing == []


def test_a_run_that_stopped_continues_where_its_last_state_stands(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "components")
    config = settings(tiny, global_batch_size=4, num_epochs=3)
    finetune(tmp_path / "whole", data, config)
    kept = config.model_copy(update={"checkpoint_uri": str(tmp_path / "states"), "checkpoint_every_steps": 2})
    with monkeypatch.context() as patch:
        stop_at_step(patch, 8, Stopped())
        with pytest.raises(Stopped):
            finetune(tmp_path / "again", data, kept)
    assert not (tmp_path / "again" / "checkpoint").exists()
    torch.manual_seed(77)
    outcome = finetune(tmp_path / "again", data, kept)
    assert outcome.metrics["resumed_at_step"] == 6 and outcome.metrics["steps"] == 9
    assert "continuing after step 6 of 9" in caplog.text
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert trace(tmp_path / "again") == trace(tmp_path / "whole")
    # An attempt after the last step, as when the node was lost while the checkpoint was uploaded.
    assert finetune(tmp_path / "third", data, kept).metrics["resumed_at_step"] == 9
    assert weights(tmp_path / "third") == weights(tmp_path / "whole")
    assert outcome.metrics["first_loss"] == log(tmp_path / "whole")[0]["loss"]


def test_another_run_with_the_same_place_starts_from_the_base_model(
    tiny: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "components")
    states = {"checkpoint_uri": str(tmp_path / "states"), "global_batch_size": 4}
    finetune(tmp_path / "first", data, settings(tiny, **states))
    other = write_data(tmp_path / "more", records(EXAMPLES - 1), texts(EXAMPLES))
    outcome = finetune(tmp_path / "second", other, settings(tiny, **states))
    assert outcome.metrics["resumed_at_step"] == 0 and outcome.metrics["steps"] == 9
    assert "other training data" in caplog.text
    assert finetune(tmp_path / "third", data, settings(tiny, **states, seed=7)).metrics["resumed_at_step"] == 0
    assert "seed was 42, is 7" in caplog.text


MUTATIONS = 100


def test_no_change_of_data_or_settings_continues_another_run(tiny: Path, tmp_path: Path) -> None:
    storage = open_store(str(tmp_path / "states"), setting="checkpoint_uri")
    config = settings(tiny)
    encoder = load_base(config.encoder(), dtype=torch.float32)
    run = _checkpoints(storage, config, records(EXAMPLES), texts(EXAMPLES), encoder, tmp_path / "original")
    run.save(3, {"weights": torch.zeros(1)}, {})
    same = _checkpoints(storage, config, records(EXAMPLES), texts(EXAMPLES), encoder, tmp_path / "copy")
    assert same.newest() is not None
    draw = random.Random(0)
    runs = set()
    for number in range(MUTATIONS):
        rows, passages, changed = copy.deepcopy(records(EXAMPLES)), texts(EXAMPLES), config
        if number % 2:
            changed = _change_setting(config, number // 2)
        else:
            _change_data(draw, rows, passages, number)
        other = _checkpoints(storage, changed, rows, passages, encoder, tmp_path / f"mutation{number}")
        assert other.newest() is None, (number, changed, rows)
        runs.add(other.run)
    assert len(runs) > 0.8 * MUTATIONS
    with torch.no_grad():
        encoder.backbone.norm.weight[3] += 1e-6
    moved = _checkpoints(storage, config, records(EXAMPLES), texts(EXAMPLES), encoder, tmp_path / "moved")
    assert moved.newest() is None


def _checkpoints(
    storage: Any, config: FinetuneConfig, rows: Any, passages: Any, encoder: Encoder, directory: Path
) -> Checkpoints:
    data = read_training_data(write_data(directory, rows, passages), config.encoder())
    tokenized = TokenizedData(data, encoder, config)
    return Checkpoints(
        storage,
        identity(config, tokenized, None, weights_digest(encoder), torch.float32, encoder.device),
        keep=2,
        where="states",
    )


def _change_setting(config: FinetuneConfig, number: int) -> FinetuneConfig:
    """Another legal value for one of the settings that the result depends on."""
    names = sorted(config.dump_what_affects_result())
    name = names[number % len(names)]
    value = getattr(config, name)
    candidates: list[Any] = [not value] if isinstance(value, bool) else []
    if isinstance(value, (int, float)):
        candidates += [value + 1 + number, value * 0.5, 0.5]
    candidates += ["changed", "last", "linear", "fp32", "eager", "a" * 64, "a" * 40, 3, [8], {"own.py": "a" * 64}]
    for candidate in candidates:
        given = config.model_dump() | {name: candidate}
        if name == "trust_remote_code":
            given |= {"base_model_revision": "a" * 40, "remote_code_sha256": {"own.py": "a" * 64}}
        try:
            changed = FinetuneConfig(**given)
        except ValueError:
            continue
        if getattr(changed, name) != value:
            return changed
    raise AssertionError(f"no other value for {name}")


def _change_data(draw: random.Random, rows: list[dict[str, Any]], passages: dict[str, str], number: int) -> None:
    row = draw.randrange(len(rows))
    kind = number // 2 % 7
    if kind == 0:
        rows[row]["question"] += f" number {number}"
    elif kind == 1:
        rows[row]["neg_doc"].reverse()
    elif kind == 2:
        del rows[row]
    elif kind == 3:
        rows.append(copy.deepcopy(rows[row]))
    elif kind == 4:
        rows[row]["pos_doc"], rows[row]["neg_doc"][:1] = rows[row]["neg_doc"][:1], rows[row]["pos_doc"]
    elif kind == 5:
        name = rows[row]["pos_doc"][0]["id"]
        passages[name] = f"{number} {passages[name]}"
    else:
        other = (row + 1 + draw.randrange(len(rows) - 1)) % len(rows)
        rows[row], rows[other] = rows[other], rows[row]


def test_sigterm_saves_at_once_and_ends_with_75(tiny: Path, data: Path, tmp_path: Path) -> None:
    """In a process of its own; what it says is true, and the next run continues from there."""
    states = tmp_path / "states"
    given = [f"base_model={tiny}", "global_batch_size=2", "num_epochs=500", "checkpoint_every_seconds=3600"]
    argv = [sys.executable, "-m", "components", "finetune", "--training-data", str(data), "--work", str(tmp_path / "w")]
    process = subprocess.Popen([*argv, f"checkpoint_uri={states}", *given], stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "w" / "checkpoint.partial" / "training.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") > 3, process)
    process.terminate()
    said = process.communicate(timeout=LIMIT_SECONDS)[1]
    assert process.returncode == 75, said
    assert "its state is saved: run again to continue" in said and "Traceback" not in said
    saved = [json.loads(path.read_text())["manifest"]["step"] for path in states.glob("*/step-*/manifest.json")]
    assert len(saved) == 1 and f"interrupted after step {saved[0]};" in said
    assert not (tmp_path / "w" / "checkpoint").exists()


def test_an_interruption_without_states_says_what_to_set(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = PaddedGradient.backward_pass

    def interrupted(self: Any, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return add(self, *given)

    monkeypatch.setattr(PaddedGradient, "backward_pass", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Transient, match="interrupted after step 0: set checkpoint_uri") as ended:
        finetune(tmp_path, data, settings(tiny))
    assert ended.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_that_a_library_takes_for_a_fault_is_one_still(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrapped(*_: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        except BaseException as error:
            raise RuntimeError("the compiler failed") from error

    monkeypatch.setattr(PaddedGradient, "backward_pass", wrapped)
    with pytest.raises(Transient, match="interrupted after step 0"):
        finetune(tmp_path, data, settings(tiny))


@pytest.mark.parametrize("uri", [None, "states"])
def test_what_diverges_is_never_saved(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    """Weights of the earlier steps are whole; the retry meets the same end."""
    add = PaddedGradient.backward_pass
    calls = []

    def poisoned(self: Any, batch: Batch, share: float) -> torch.Tensor:
        loss = add(self, batch, share)
        calls.append(loss)
        if len(calls) == 3:
            next(self.encoder.parameters()).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(PaddedGradient, "backward_pass", poisoned)
    place = {"checkpoint_uri": str(tmp_path / uri), "checkpoint_every_steps": 1} if uri else {}
    config = settings(tiny, global_batch_size=4, local_batch_size=4, **place)
    with pytest.raises(ActionNeeded, match=r"step 3 of 9: gradient norm (inf|nan).*lower learning_rate.*data\[\d+"):
        finetune(tmp_path / "work", data, config)
    if uri:
        kept = {path.parent.name.split("-")[1] for path in (tmp_path / uri).glob("*/step-*/manifest.json")}
        assert kept == {"00000001", "00000002"}
    assert not (tmp_path / "work" / "checkpoint").exists()


def test_weights_that_diverge_in_the_last_step_are_not_published(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data", records(3), texts(3))
    monkeypatch.setattr(trainer_module, "learning_rate", lambda *_: float("inf"))
    with pytest.raises(ActionNeeded, match="weights are no finite numbers"):
        finetune(tmp_path / "work", data, settings(tiny, num_epochs=1))
    assert not (tmp_path / "work" / "checkpoint").exists()


def test_out_of_memory_repeats_the_batch_in_smaller_passes(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a failed pass' gradient must not stay: the training is that with the smaller size from the start."""
    finetune(tmp_path / "small", data, settings(tiny, local_batch_size=3))
    add = PaddedGradient.backward_pass

    def short_of_memory(self: Any, batch: Batch, share: float) -> torch.Tensor:
        loss = add(self, batch, share)
        if len(batch.queries) > 3:
            raise torch.OutOfMemoryError("simulated")
        return loss

    monkeypatch.setattr(PaddedGradient, "backward_pass", short_of_memory)
    finetune(tmp_path / "large", data, settings(tiny, local_batch_size=12))
    assert trace(tmp_path / "large") == trace(tmp_path / "small")
    assert weights(tmp_path / "large") == weights(tmp_path / "small")
    assert "repeated with passes of 6 queries" in caplog.text and "of 3 queries" in caplog.text


def test_a_query_that_does_not_fit_is_refused(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(PaddedGradient, "backward_pass", full)
    with pytest.raises(InputError, match=r"step 1: a single query .* does not fit into the memory of cpu"):
        finetune(tmp_path, data, settings(tiny))


HANGS = """
import threading
import time
from components.finetune.resume.interruption import Watchdog
from components.finetune.model import weights_digest
def stands_still():
    time.sleep(3600)
with Watchdog(0.3):
    stands_still()
"""


def test_a_hang_ends_with_75_and_says_where() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 75
    assert "stands_still" in done.stderr and "run again" in done.stderr


class Clock:
    """Stands for the module ``time``: the test moves it, and counts who looks."""

    now, looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


def test_work_that_goes_on_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.finetune.resume.interruption.time", clock := Clock())
    with Watchdog(0.4) as watchdog:
        for _ in range(12):
            looks = clock.looks
            clock.now += 0.3
            wait_for(lambda looks=looks: clock.looks > looks)
            watchdog.beat()
    clock.now += 10
    wait_for(lambda: not any(thread.name == "watchdog" for thread in threading.enumerate()))
