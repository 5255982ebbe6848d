"""The benchmark commands run from end to end on a tiny model, and all contestants compute the same thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, encode, finetune, stages


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[dict[str, Any]]]:
    def run(program: Any) -> list[dict[str, Any]]:
        path = tmp_path / "results.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", "--tiny", "--json", str(path)])
        program.main()
        return json.loads(path.read_text())["rows"]

    return run


def test_all_encoders_give_the_same_vectors(rows_of):
    rows = rows_of(encode)
    assert {row["contestant"].split(",")[0] for row in rows} >= {"ours", "sentence-transformers"}
    for row in rows:
        assert row["passages/s"] > 0
        assert row["least cosine to fp32"] > (0.99 if "fp8" in row["contestant"] else 0.9995), row["contestant"]


def test_loops_of_one_loss_start_from_one_value_and_repeated_texts_change_nothing(rows_of):
    losses = {
        row["contestant"]: [float(loss) for loss in row["loss of the first steps"].split()] for row in rows_of(finetune)
    }
    assert losses["recipe's loop (micro-batch 4)"][0] == pytest.approx(losses["ours, bf16"][0], rel=0.01)
    cached = losses["sentence-transformers, CachedMNRL 32, sdpa"][0]
    assert losses["ours, bf16, in-batch negatives 128 x 640"][0] == pytest.approx(cached, rel=0.01)
    twice = losses["ours, bf16; every passage twice, encoded twice"]
    assert losses["ours, bf16; every passage twice, encoded once"] == pytest.approx(twice, rel=0.02)


def test_our_gradients_are_those_of_transformers(rows_of):
    error = {row["computed by"]: float(row["relative error of the gradient"]) for row in rows_of(accuracy)}
    assert error["ours, float32, not compiled"] < 1e-4
    assert error["ours, bfloat16"] < 1.5 * error["transformers, bfloat16, padded"]


def test_the_stages_run_one_after_the_other(rows_of):
    rows = rows_of(stages)
    assert [row["stage"] for row in rows] == ["prep", "finetune", "eval", "export"]
    assert all(row["seconds"] > 0 for row in rows)
