"""Several processes train as one would: same batches, same loss, same weights, same states."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.distributed.launch import launch
from components.core.errors import ActionNeeded
from components.finetune.component import FinetuneConfig
from tests.finetune.test_validation import VAL, write_val
from tests.finetune.training import finetune, log, records, settings, texts, write_data
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

EXAMPLES = 11
SHORT = {"global_batch_size": 8, "num_epochs": 2, "val_every_steps": 2, "hang_timeout_seconds": LIMIT_SECONDS}
IN_BATCH = {"in_batch_negatives": True, "local_batch_size": 4}
# Each is trained by two ranks and by one process.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "in-batch": IN_BATCH,
    "no query for a rank": {"global_batch_size": 1, "num_epochs": 1},
    "few texts for a rank": {"global_batch_size": 1, "num_epochs": 1, **IN_BATCH, "train_n_passages": 2},
    "lora": {"lora_rank": 2},
    "cut vectors": {"matryoshka_dimensions": [8]},
    "fsdp": {"parallelism": "fsdp"},
    "fsdp in-batch": {"parallelism": "fsdp", **IN_BATCH},
    "fsdp lora": {"parallelism": "fsdp", "lora_rank": 2},
    "fsdp no query for a rank": {"parallelism": "fsdp", "global_batch_size": 1, "num_epochs": 1},
    "packed": {"packed": True},
    "packed, repeated passages": {"packed": True, "data": "repeated"},
    "packed, repeated passages, little memory": {"packed": True, "data": "repeated", "packed_batch_tokens": 32},
    "packed, a bin for each query": {"packed": True, "packed_batch_tokens": 32},
    "packed in-batch": {"packed": True, "data": "repeated", **IN_BATCH},
    "packed, no query for a rank": {"packed": True, "global_batch_size": 1, "num_epochs": 1},
    "packed in-batch, few texts": {"packed": True, "global_batch_size": 1, "num_epochs": 1, **IN_BATCH},
}
# Texts that do not repeat are computed bin by bin, each bin by one rank; else all bins together, shared by the ranks.
PHASES = {"packed": 2, "packed, repeated passages": 1, "packed, a bin for each query": 8}
FAULTY: dict[str, dict[str, Any]] = {
    "memory": {"fault": "out of memory"},
    "memory in-batch": {"fault": "out of memory", **IN_BATCH},
    "memory for encoding": {"fault": "out of memory in embedding", **IN_BATCH},
    "memory for gathering": {"fault": "out of memory in new_zeros", **IN_BATCH},
    "memory for the loss": {"fault": "out of memory in _log_softmax", **IN_BATCH},
    "memory for the gradient": {"fault": "out of memory in embedding_dense_backward", **IN_BATCH},
    "memory packed": {"fault": "out of memory in embedding", "packed": True, "packed_batch_tokens": 256},
    "memory packed, gradient": {"fault": "out of memory in index_put_", "packed": True, "packed_batch_tokens": 256},
    "memory packed, repeated": {"fault": "out of memory in embedding", "packed": True, "data": "repeated"},
    "memory packed in-batch": {"fault": "out of memory in embedding", "packed": True, **IN_BATCH},
    "memory packed, for gathering": {"fault": "out of memory in new_zeros", "packed": True, **IN_BATCH},
    "nan": {"fault": "not a number"},
    "nan in-batch": {"fault": "not a number", **IN_BATCH},
    "terminated": {"fault": "terminated"},
    "terminated fsdp": {"fault": "terminated", "parallelism": "fsdp"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three answers to one question, passages that are negatives of several, and a val split."""
    rows = records(EXAMPLES)
    rows[4] |= {"question": rows[3]["question"]}
    rows[5] |= {"question": rows[3]["question"]}
    return write_val(write_data(tmp_path_factory.mktemp("data") / "data", rows, texts(EXAMPLES)), VAL)


@pytest.fixture(scope="module")
def distinct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No passage twice."""
    rows = records(EXAMPLES)
    for number, row in enumerate(rows):
        row["neg_doc"] = [{"id": f"d{EXAMPLES + 4 * number + place}"} for place in range(4)]
    return write_val(write_data(tmp_path_factory.mktemp("distinct") / "data", rows, texts(5 * EXAMPLES)), VAL)


@pytest.fixture(scope="module")
def data_of(data: Path, distinct: Path) -> Callable[[dict[str, Any]], Path]:
    """What a run is trained on: packed ones on passages that do not repeat, unless they say so."""
    return lambda given: distinct if given.get("packed") and given.get("data") != "repeated" else data


def made(tiny: Path, states: Path | None = None, **given: Any) -> FinetuneConfig:
    kept = {"checkpoint_uri": str(states), "checkpoint_every_steps": 2} if states else {}
    return settings(tiny, **{**SHORT, **kept, **given})


def only_settings(given: dict[str, Any], *others: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in ("fault", "packed", "data", *others)}


@pytest.fixture(scope="module")
def by_two(tiny: Path, data_of: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where two ranks left their results, and what they returned. One launch: most of its time is starting."""
    work = tmp_path_factory.mktemp("by-two")
    configs = {name: made(tiny, **only_settings(given)) for name, given in VARIANTS.items()}
    for name, given in FAULTY.items():
        configs[name] = made(tiny, work / f"{name}-states", num_epochs=4, **only_settings(given))
    runs = {
        name: configs[name].model_dump(mode="json") | given | {"data": str(data_of(given))}
        for name, given in {**VARIANTS, **FAULTY}.items()
    }
    arguments = {"runs": runs, "work": str(work)}
    return work, launch("tests.finetune.ranked:train_all", arguments, 2)


def losses(work: Path) -> list[float]:
    return [step["loss"] for step in log(work)]


def weights(directory: Path) -> torch.Tensor:
    loaded = load_file(directory / "model.safetensors")
    return torch.cat([loaded[name].flatten() for name in sorted(loaded)])


def same_training(one: Path, other: Path, base: Path) -> None:
    """Same losses and validations, and weights that moved to the same place."""
    for step, expected in zip(log(other), log(one), strict=True):
        assert step.keys() == expected.keys()
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert step.get("val_ndcg_at_10") == pytest.approx(expected.get("val_ndcg_at_10"))
    found, wanted, start = weights(other / "checkpoint"), weights(one / "checkpoint"), weights(base)
    assert (found - wanted).norm() < 0.02 * (wanted - start).norm()


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_train_as_one(name: str, tiny: Path, data_of: Any, by_two: Any, tmp_path: Path) -> None:
    work, figures = by_two
    outcome = finetune(tmp_path, data_of(VARIANTS[name]), made(tiny, **only_settings(VARIANTS[name], "parallelism")))
    same_training(tmp_path, work / name, tiny)
    assert figures[name]["steps"] == outcome.metrics["steps"]
    assert figures[name]["best_step"] == outcome.metrics["best_step"]
    assert figures[name]["phases"] == PHASES.get(name, figures[name]["phases"])


@pytest.mark.parametrize("name", [name for name in FAULTY if name.startswith("memory")])
def test_memory_that_runs_out_on_one_rank_halves_the_passes_of_all(
    name: str, tiny: Path, data_of: Any, by_two: Any, tmp_path: Path
) -> None:
    work, _ = by_two
    finetune(tmp_path, data_of(FAULTY[name]), made(tiny, num_epochs=4, **only_settings(FAULTY[name])))
    same_training(tmp_path, work / name, tiny)


def test_memory_that_runs_out_in_a_spread_model_ends_the_run_in_one_line(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    """The other rank waits inside of the model; it must not be waited for."""
    config = made(tiny, parallelism="fsdp", local_batch_size=2)
    arguments = {"settings": config.model_dump(mode="json"), "data": str(data), "work": str(tmp_path)}
    message = r"step 1 of 4: out of memory on cpu; .* set local_batch_size below 2, or lower passage_max_length"
    with pytest.raises(ActionNeeded, match=message):
        launch("tests.finetune.ranked:train_with_too_little_memory", arguments, 2)
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["nan", "nan in-batch"])
def test_a_loss_that_is_no_number_on_one_rank_stops_all(name: str, by_two: Any) -> None:
    work, figures = by_two
    assert figures[name]["exit_code"] == 3 and "nothing was saved" in figures[name]["message"]
    assert not (work / name / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["terminated", "terminated fsdp"])
def test_a_state_that_two_ranks_saved_is_continued_by_one(
    name: str, tiny: Path, data: Path, by_two: Any, tmp_path: Path
) -> None:
    """Also one that was spread over them."""
    work, figures = by_two
    assert figures[name]["exit_code"] == 75 and "its state is saved" in figures[name]["message"]
    finetune(tmp_path / "whole", data, made(tiny, num_epochs=4))
    outcome = finetune(tmp_path / "rest", data, made(tiny, work / f"{name}-states", num_epochs=4))
    assert 0 < outcome.metrics["resumed_at_step"] < outcome.metrics["steps"] == 8
    same_training(tmp_path / "whole", tmp_path / "rest", tiny)


IMPATIENT = """
import dataclasses, json, sys
from components.core.distributed import launch
config, arguments = launch._config, json.loads(sys.argv[1])
launch._config = lambda *given: dataclasses.replace(config(*given), shutdown_timeout=2)
try:
    launch.launch("tests.finetune.ranked:train_with_slow_storage", arguments, 2)
except launch.StageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_state_that_cannot_be_written_in_time_leaves_the_one_before(tiny: Path, data: Path, tmp_path: Path) -> None:
    """The launcher kills the ranks when they have not ended some time after SIGTERM: 30 s, here 2."""
    config = made(tiny, tmp_path / "states", num_epochs=4)
    arguments = {"settings": config.model_dump(mode="json"), "data": str(data), "work": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", IMPATIENT, json.dumps(arguments)], stdout=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "writing").exists(), process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT_SECONDS)[0].decode()
    assert process.returncode == 75
    assert said == "interrupted, and killed before everything was written: run again to continue from what was\n"
    outcome = finetune(tmp_path / "rest", data, config)
    finetune(tmp_path / "whole", data, config.model_copy(update={"checkpoint_uri": None}))
    assert outcome.metrics["resumed_at_step"] == 2
    same_training(tmp_path / "whole", tmp_path / "rest", tiny)


def test_several_processes_look_like_one_from_outside(tiny: Path, data: Path, tmp_path: Path) -> None:
    """SIGTERM to the command saves and ends it with 75; another number of processes goes on from there."""
    states = tmp_path / "states"
    config = made(tiny, states, global_batch_size=2, num_epochs=9, val_every_steps=None, checkpoint_every_steps=1000)
    given = [f"{name}={value}" for name, value in config.model_dump(exclude_defaults=True).items()]
    argv = [sys.executable, "-m", "components", "finetune", "--training-data", str(data), "--work", str(tmp_path / "w")]
    process = subprocess.Popen([*argv, *given, "val_every_steps=null", "num_processes=2"], stderr=subprocess.PIPE)
    lines = tmp_path / "w" / "checkpoint.partial" / "training.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") > 3, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=LIMIT_SECONDS)[1].decode()
    assert process.returncode == 75, said
    assert "error: interrupted after step" in said and "its state is saved: run again" in said
    assert "Traceback" not in said and "rank 1:" not in said
    assert not (tmp_path / "w" / "checkpoint").exists()
    outcome = finetune(tmp_path / "rest", data, config.model_copy(update={"num_processes": 3}))
    assert 0 < outcome.metrics["resumed_at_step"] < outcome.metrics["steps"] == 54
    finetune(tmp_path / "whole", data, config.model_copy(update={"checkpoint_uri": None}))
    assert losses(tmp_path / "rest") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3, abs=1e-5)
    assert os.environ.get("WORLD_SIZE") is None
