"""The benchmark commands run from end to end on a tiny model, and all contestants compute the same thing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, encode, finetune, kernels, quality, scaling, stages
from benchmarks.report import chosen

pytestmark = pytest.mark.slow


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], list[dict[str, Any]]]:
    def run(program: Any, *arguments: str) -> list[dict[str, Any]]:
        path = tmp_path / "results.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", *(arguments or ["--tiny"]), "--json", str(path)])
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
    assert error["ours, float32"] < 1e-4
    assert error["ours, bfloat16"] < 1.5 * error["transformers, bfloat16, padded"]


def test_the_kernels_of_a_step_are_listed(rows_of):
    rows = rows_of(kernels)
    for contestant in ("ours, bf16", "ours, fp8"):
        own = [row for row in rows if row["contestant"] == contestant]
        times = [row["ms a step"] for row in own]
        assert times == sorted(times, reverse=True) and times[-1] > 0
        assert 0.3 < sum(row["share of the step"] for row in own) < 1.5  # threads of a CPU overlap
        assert "aten::mm" in {row["kernel"] for row in own}


def test_the_stages_run_one_after_the_other(rows_of):
    rows = rows_of(stages)
    assert [row["stage"] for row in rows] == ["prep", "finetune", "eval", "export"]
    assert all(row["seconds"] > 0 for row in rows)


def test_two_processes_train_what_one_does(rows_of):
    rows = rows_of(scaling, "--tiny", "--only", "one GPU, in-batch negatives 128|two GPUs, in-batch negatives 128")
    assert all(0 < row["seconds to the first step's end"] <= row["seconds in all"] + 1 for row in rows)
    assert [row["contestant"].split(",")[0] for row in rows] == ["one GPU", "two GPUs"]
    assert float(rows[1]["largest difference of a loss"]) < 1e-4
    assert all(row["s/step"] > 0 for row in rows)


def test_contestants_are_chosen_by_name_or_by_a_word_of_it():
    names = ["one GPU", "one GPU, again", "two GPUs", "two GPUs, fsdp"]
    assert chosen(names, "") == names
    assert chosen(names, "one GPU|fsdp") == ["one GPU", "two GPUs, fsdp"]
    assert chosen(names, "one|two GPUs") == ["one GPU", "one GPU, again", "two GPUs"]
    with pytest.raises(SystemExit, match="there is no such contestant: one GPU; one GPU, again"):
        chosen(names, "three")


def test_both_trainings_of_the_small_model_are_measured(rows_of, tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    words = ("bees", "tea", "rain", "iron", "jazz", "salt", "owls", "silk")
    texts = [f"Article {n} is about {word}." for n, word in enumerate(words)]
    passages = [json.dumps({"_id": f"p{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
    questions = [json.dumps({"_id": f"q{n}", "text": text.split()[-1]}) for n, text in enumerate(texts)]
    judgements = ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in range(len(texts)))]
    (folder / "corpus.jsonl").write_text("\n".join(passages))
    (folder / "queries.jsonl").write_text("\n".join(questions))
    (folder / "qrels" / "test.tsv").write_text("\n".join(judgements))
    try:
        (row,) = rows_of(quality, "--data", str(folder), "--seeds", "2", "--epochs", "1", "--length", "16")
    except SystemExit as ended:  # so few questions say nothing about who is better
        assert "further apart" in str(ended.code)
        (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["triples"] == row["test questions"] == 4
    assert 0 < float(row["ours"].split()[0]) <= 1
    assert 0 < float(row["sentence-transformers"].split()[0]) <= 1
