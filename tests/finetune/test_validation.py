"""The val split: its nDCG against a formula, early stopping, and which weights are the result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.core.encoder.checkpoint import load_checkpoint
from components.core.errors import InputError
from components.finetune import trainer as trainer_module
from components.finetune.validation import Selection, Validation, read_validation
from tests.finetune.test_resume import Stopped, stop_at_step, weights
from tests.finetune.training import finetune, log, records, settings, texts, write_data

pytestmark = pytest.mark.slow

EXAMPLES = 12


def write_val(directory: Path, rows: list[dict[str, Any]]) -> Path:
    content = {"corpus": {"path": "./corpus/"}, "data": rows}
    (directory / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


VAL = [
    {"question": "Which screw holds the valve?", "pos_doc": [{"id": "d0"}, {"id": "d6"}], "neg_doc": []},
    {"question": "How is a pump fitted?", "pos_doc": [{"id": "d1"}], "neg_doc": []},
    {"question": "press down the bearing", "pos_doc": [{"id": "d11"}], "neg_doc": []},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_val(write_data(tmp_path / "data", records(EXAMPLES), texts(EXAMPLES)), VAL)


def by_formula(checkpoint: Path, examples: int = EXAMPLES) -> float:
    """nDCG@10 of the published model, gains of 1, from its vectors."""
    encoder = load_checkpoint(checkpoint)
    passages = texts(examples)
    found = (
        encoder.encode([row["question"] for row in VAL], "query") @ encoder.encode(list(passages.values()), "passage").T
    )
    values = []
    for row, scores in zip(VAL, found, strict=True):
        order = [list(passages)[place] for place in (-scores).argsort()[:10]]
        right = {entry["id"] for entry in row["pos_doc"]}
        gain = sum(1 / math.log2(rank + 2) for rank, name in enumerate(order) if name in right)
        values.append(gain / sum(1 / math.log2(rank + 2) for rank in range(len(right))))
    return sum(values) / len(values)


def test_it_is_measured_on_the_way_and_the_result_is_the_best(tiny: Path, data: Path, tmp_path: Path) -> None:
    outcome = finetune(tmp_path, data, settings(tiny, global_batch_size=4, num_epochs=4, val_every_steps=2))
    measured = {line["step"]: line["val_ndcg_at_10"] for line in log(tmp_path) if "val_ndcg_at_10" in line}
    assert sorted(measured) == [2, 4, 6, 8, 10, 12]
    best = outcome.metrics["best_val_ndcg_at_10"]
    assert best == max(measured.values())
    assert outcome.metrics["best_step"] == min(step for step, value in measured.items() if value == best)
    assert by_formula(tmp_path / "checkpoint") == pytest.approx(best, abs=1e-4)
    assert 0 < outcome.metrics["base_val_ndcg_at_10"] < 1


def test_few_steps_are_measured_three_times_at_least(tiny: Path, data: Path, tmp_path: Path) -> None:
    finetune(tmp_path, data, settings(tiny, global_batch_size=4))
    assert [line["step"] for line in log(tmp_path) if "val_ndcg_at_10" in line] == [3, 6, 9]


def scripted(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Measurements as given, the base model's first."""
    left = list(values)
    monkeypatch.setattr(Validation, "ndcg", lambda *_: left.pop(0))


@pytest.mark.parametrize(("patience", "last", "best"), [(None, 9, 2), (3, 5, 2), (1, 3, 2), (7, 9, 2)])
def test_patience(
    tiny: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int | None,
    last: int,
    best: int,
) -> None:
    """The base model is better than all that comes, and never the result."""
    scripted(monkeypatch, 0.9, 0.3, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1)
    config = settings(tiny, global_batch_size=4, val_every_steps=1, early_stopping_patience=patience)
    outcome = finetune(tmp_path, data, config)
    assert outcome.metrics["steps"] == last and outcome.metrics["best_step"] == best
    assert len(log(tmp_path)) == last


def test_the_weights_are_those_of_the_best_step(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"global_batch_size": 4, "val_every_steps": 1}
    taken: dict[int, dict[str, torch.Tensor]] = {}
    validate = trainer_module.Trainer._validate

    def noting(self: Any, step: int) -> float | None:
        taken[step] = self._state.weights()
        return validate(self, step)

    monkeypatch.setattr(trainer_module.Trainer, "_validate", noting)
    for best, name in ((True, "best"), (False, "last")):
        scripted(monkeypatch, 0, 0.1, 0.2, 0.3, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5)
        finetune(tmp_path / name, data, settings(tiny, **given, load_best_model_at_end=best))
        found = load_file(tmp_path / name / "checkpoint" / "model.safetensors")
        assert all(torch.equal(found[weight], taken[4 if best else 9][weight]) for weight in found)


@pytest.mark.parametrize("stopped_at", [3, 5, 6])
def test_a_resumed_run_knows_the_best_and_its_patience(
    tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    values = {0: 0.1, 1: 0.3, 2: 0.6, 3: 0.5, 4: 0.5, 5: 0.5, 6: 0.5, 7: 0.1}
    states = {"checkpoint_uri": str(tmp_path / "states"), "checkpoint_every_steps": 1}
    config = settings(tiny, global_batch_size=4, val_every_steps=1, early_stopping_patience=4)
    counted: list[int] = []

    def by_step(self: Any, *_: Any) -> float:
        return values[counted.pop()]

    validate = trainer_module.Trainer._validate
    monkeypatch.setattr(Validation, "ndcg", by_step)
    monkeypatch.setattr(
        trainer_module.Trainer, "_validate", lambda self, step: counted.append(step) or validate(self, step)
    )
    finetune(tmp_path / "whole", data, config)
    assert len(log(tmp_path / "whole")) == 6
    config = config.model_copy(update=states)
    with monkeypatch.context() as patch:
        stop_at_step(patch, stopped_at, Stopped())
        with pytest.raises(Stopped):
            finetune(tmp_path / "again", data, config)
    outcome = finetune(tmp_path / "again", data, config)
    assert outcome.metrics["resumed_at_step"] == stopped_at - 1
    assert outcome.metrics["best_step"] == 2 and outcome.metrics["steps"] == 6
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert finetune(tmp_path / "third", data, config).metrics["steps"] == 6


def test_of_a_large_corpus_some_passages_are_searched(data: Path) -> None:
    first = read_validation(data, texts(EXAMPLES), 3, seed=1)
    again = read_validation(data, texts(EXAMPLES), 3, seed=1)
    assert first is not None and first == again
    assert list(first.passages)[:4] == ["d0", "d6", "d1", "d11"] and len(first.passages) == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "expected"),
        ("[]", "expected"),
        ('{"data": [{"question": "q"}]}', "expected"),
        ('{"data": [{"question": "q", "pos_doc": []}]}', r"data\[0\] has no question or no positive"),
        ('{"data": [{"question": "q", "pos_doc": [{"id": "x"}]}]}', r"data\[0\] names the passage 'x'"),
    ],
)
def test_what_is_no_val_split_is_refused_in_one_line(data: Path, content: str, says: str) -> None:
    (data / "val.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=says) as refused:
        read_validation(data, texts(EXAMPLES), 10, seed=1)
    assert "\n" not in str(refused.value)


def test_no_val_split_is_none(data: Path) -> None:
    (data / "val.json").write_text('{"corpus": {"path": "./corpus/"}, "data": []}', encoding="utf-8")
    assert read_validation(data, texts(EXAMPLES), 10, seed=1) is None
    (data / "val.json").unlink()
    assert read_validation(data, texts(EXAMPLES), 10, seed=1) is None


def test_of_equal_values_the_earlier_is_the_best() -> None:
    selection = Selection()
    for step, value in enumerate((0.5, 0.2, 0.4, 0.4)):
        selection.add(step, value, lambda step=step: {"at": torch.tensor(step)})
    assert (selection.best, selection.best_step, selection.stale()) == (0.4, 2, 1)
    assert selection.weights["at"] == 2
