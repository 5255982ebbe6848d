"""Wrong input: one line that says what to change, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.artifacts import seal
from tests.cli.cli import components, forked_components

Arguments = list[str | Path]


def write_corpus(directory: Path) -> Path:
    directory.mkdir()
    text = "A valve opens when the pressure rises above the limit that is set with the screw. " * 3
    (directory / "valve.txt").write_text(text)
    return directory


def write_eval_data(directory: Path) -> Path:
    (directory / "qrels").mkdir(parents=True)
    (directory / "corpus.jsonl").write_text('{"_id": "p", "text": "A valve opens."}\n')
    (directory / "queries.jsonl").write_text('{"_id": "q", "text": "What opens?"}\n')
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp\t1\n")
    seal(directory, "eval_data", stage="prep")
    return directory


def empty_corpus(at: Path) -> Arguments:
    (at / "corpus").mkdir()
    return ["sdg", "--profile", "small", "--corpus", at / "corpus"]


def binary_corpus(at: Path) -> Arguments:
    (at / "corpus").mkdir()
    (at / "corpus" / "picture.txt").write_bytes(os.urandom(4096))
    return ["sdg", "--profile", "small", "--corpus", at / "corpus"]


def a_file_as_corpus(at: Path) -> Arguments:
    (at / "corpus").write_text("text")
    return ["sdg", "--profile", "small", "--corpus", at / "corpus"]


def broken_records(at: Path) -> Arguments:
    (at / "qa_pairs").mkdir()
    (at / "qa_pairs" / "qa_pairs.jsonl").write_bytes(b'{"document": \x00\xff')
    return ["prep", "--profile", "small", "--qa-pairs", at / "qa_pairs"]


def flipped_byte(at: Path) -> Arguments:
    passages = write_eval_data(at / "eval_data") / "corpus.jsonl"
    passages.write_text(passages.read_text().replace("valve", "vblve"))
    (at / "checkpoint").mkdir()
    return ["eval", "--checkpoint", at / "checkpoint", "--eval-data", at / "eval_data"]


def no_checkpoint(at: Path) -> Arguments:
    (at / "checkpoint").mkdir()
    (at / "checkpoint" / "notes.txt").write_text("nothing here")
    return ["eval", "--checkpoint", at / "checkpoint", "--eval-data", write_eval_data(at / "eval_data")]


def broken_weights(at: Path) -> Arguments:
    (at / "checkpoint").mkdir()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    (at / "checkpoint" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 9, **sizes}))
    (at / "checkpoint" / "model.safetensors").write_bytes(os.urandom(4096))
    (at / "checkpoint" / "encoder.json").write_text("{}")
    return ["eval", "--checkpoint", at / "checkpoint", "--eval-data", write_eval_data(at / "eval_data")]


def bad_yaml(at: Path) -> Arguments:
    (at / "settings.yaml").write_text("sdg: [1\nprep")
    return ["run", "--corpus", write_corpus(at / "corpus"), "--config", at / "settings.yaml"]


def yaml_without_names(at: Path) -> Arguments:
    (at / "settings.yaml").write_text("- 1\n- 2\n")
    return ["run", "--corpus", write_corpus(at / "corpus"), "--config", at / "settings.yaml"]


def unknown_setting_in_yaml(at: Path) -> Arguments:
    (at / "settings.yaml").write_text("finetune:\n  num_epoch: 3\n")
    return ["run", "--corpus", write_corpus(at / "corpus"), "--config", at / "settings.yaml"]


def with_corpus(*arguments: str) -> Callable[[Path], Arguments]:
    return lambda at: [*arguments, "--corpus", write_corpus(at / "corpus")]


def just(*arguments: str) -> Callable[[Path], Arguments]:
    return lambda at: [*arguments]


CASES = {
    "unknown setting": (
        with_corpus("run", "num_epoch=3"),
        "there is no setting 'num_epoch' in any stage: did you mean",
    ),
    "unknown setting of a stage": (with_corpus("run", "prep.num_epochs=3"), "no setting 'num_epochs' in prep"),
    "unknown setting in YAML": (unknown_setting_in_yaml, "did you mean 'num_epochs'?"),
    "unknown option": (with_corpus("sdg", "--num-pair", "3"), "no option --num-pair: did you mean --num-pairs?"),
    "setting as option of a run": (with_corpus("run", "--num-pairs", "3"), "write the setting as num_pairs=VALUE"),
    "setting of no chosen stage": (with_corpus("run", "--to", "prep", "num_epochs=3"), "is a setting of finetune"),
    "setting that means two things": (with_corpus("run", "temperature=1"), "sdg.temperature or finetune.temperature"),
    "wrong type": (with_corpus("sdg", "num_pairs=many"), "num_pairs = 'many': input should be a valid integer"),
    "out of range": (with_corpus("sdg", "--num-pairs", "0"), "num_pairs = 0: input should be greater than 0"),
    "two wrong settings": (with_corpus("sdg", "num_pairs=0", "top_p=2"), "num_pairs = 0"),
    "missing corpus": (just("sdg", "--corpus", "/nowhere/corpus"), "corpus: there is no directory /nowhere/corpus"),
    "missing corpus of a run": (just("run"), "give its path with --corpus"),
    "artifact that is made anyway": (
        lambda at: [*with_corpus("run")(at), "--checkpoint", write_eval_data(at / "c")],
        "make checkpoint themselves",
    ),
    "empty corpus": (empty_corpus, "holds no files"),
    "binary corpus": (binary_corpus, "1 binary"),
    "file as corpus": (a_file_as_corpus, "there is no directory"),
    "broken records": (broken_records, "qa_pairs.jsonl is not UTF-8"),
    "flipped byte": (flipped_byte, "corpus.jsonl does not have the sha256 of its manifest"),
    "no checkpoint": (no_checkpoint, "is no checkpoint (no config.json)"),
    "broken weights": (broken_weights, "cannot be loaded"),
    "reversed stages": (just("run", "--from", "eval", "--to", "sdg"), "--from eval comes after --to sdg"),
    "unknown stage": (just("run", "--from", "evl"), "invalid choice: 'evl' (choose from 'sdg'"),
    "unknown command": (just("evaluate"), "invalid choice: 'evaluate'"),
    "no command": (just(), "COMMAND"),
    "bad YAML": (bad_yaml, "cannot be read as YAML"),
    "YAML without names": (yaml_without_names, "holds list: expected names and values"),
    "missing YAML": (just("run", "--config", "/nowhere.yaml"), "--config /nowhere.yaml cannot be read"),
    "unknown profile": (with_corpus("run", "--profile", "big"), "invalid choice: 'big'"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_2_and_nothing_left_behind(tmp_path: Path, case: str) -> None:
    arrange, message = CASES[case]
    brought = tmp_path / "brought"
    brought.mkdir()
    work = tmp_path / "work"
    arguments = arrange(brought)
    # Those that come as far as a model: the others end before torch is imported.
    command = forked_components if arguments and arguments[0] in ("eval", "prep") else components
    done = command(
        *arguments, *(["--work", work] if arguments and arguments[0] in ("run", "sdg", "eval", "prep") else [])
    )
    assert len(done.said) == 1, done.said
    assert done.said[0].startswith("error: ")
    assert message in done.said[0]
    assert (done.code, done.output) == (2, "")
    assert list(work.rglob("*")) == []


def test_an_earlier_result_survives_a_refused_run(tmp_path: Path) -> None:
    earlier = tmp_path / "work" / "qa_pairs"
    earlier.mkdir(parents=True)
    (earlier / "qa_pairs.jsonl").write_text("{}\n")
    (tmp_path / "corpus").mkdir()
    assert components("sdg", "--work", tmp_path / "work", "--corpus", tmp_path / "corpus").code == 2
    assert [path.name for path in (tmp_path / "work").rglob("*")] == ["qa_pairs", "qa_pairs.jsonl"]


def test_verbose_shows_where_it_was_found(tmp_path: Path) -> None:
    done = components("sdg", "--work", tmp_path, "--corpus", tmp_path / "nowhere", "--verbose")
    assert any("Traceback" in line for line in done.said)
    assert done.said[-1].startswith("error: corpus")


@pytest.mark.parametrize("command", ["run", "sdg"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, command: str) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    (tmp_path / "file").touch()
    done = components(command, "--profile", "small", "--work", tmp_path / "file" / "work", "--corpus", corpus)
    assert (done.code, len(done.said)) == (2, 1)
    assert "cannot be written" in done.said[0]
