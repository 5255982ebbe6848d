"""What the command line shows without doing anything: the workflow, every setting, and dry runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from components.core.artifacts import ARTIFACTS
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, by_name
from tests.cli.cli import components


def test_info_names_every_stage_artifact_and_profile_in_order() -> None:
    done = components("info")
    assert (done.code, done.said) == (0, [])
    assert re.findall(r"^\d\. (\w+):", done.output, flags=re.MULTILINE) == list(NAMES)
    shown = {name for name, kind in ARTIFACTS.items() if kind.kfp_type != "Metrics"} | set(PROFILES)
    assert not {name for name in shown if not re.search(rf"\b{name}\b", done.output)}


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_setting_with_meaning_and_default(name: str) -> None:
    done = components(name, "--help")
    shown = " ".join(done.output.split())
    assert done.code == 0
    for setting, field in by_name(name).config.model_fields.items():
        assert f"--{setting.replace('_', '-')} " in shown
        # argparse breaks lines after hyphens.
        assert field.description.replace("- ", "-") in shown.replace("- ", "-")
    assert shown.count("(default: ") > len(by_name(name).config.model_fields)


def test_dry_run_of_a_run_shows_every_stage_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manual.txt").write_text("The valve of pump 7 closes at four bar. " * 20)
    given = ("--corpus", tmp_path / "corpus", "--profile", "small", "num_epochs=2", "generator=offline")
    done = components("run", "--dry-run", "--work", tmp_path / "work", *given)
    assert (done.code, done.said) == (0, [])
    assert re.findall(r"^(\w+): ", done.output, flags=re.MULTILINE) == list(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("generator", ["offline", "llm"])
@pytest.mark.parametrize("given", ["nowhere", None], ids=["a path that is not there", "no path"])
def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path, generator: str, given: str | None) -> None:
    where = tmp_path / (given or "work/corpus")
    arguments = ["--work", tmp_path / "work", "--profile", "small", f"generator={generator}"]
    arguments += ["--corpus", where] if given else []
    dry, wet = components("run", "--dry-run", *arguments), components("run", *arguments)
    assert (dry.code, dry.said) == (wet.code, wet.said)
    assert dry.code == 2
    assert dry.said == [f"error: corpus: there is nothing at {where}: give its path with --corpus"]


def test_a_dry_run_of_a_stage_refuses_a_path_that_is_not_there(tmp_path: Path) -> None:
    done = components("prep", "--dry-run", "--work", tmp_path / "work", "--miner", tmp_path / "nowhere")
    assert done.code == 2
    assert done.said == [f"error: miner: there is nothing at {tmp_path / 'nowhere'}: give its path with --miner"]


@pytest.mark.parametrize("name", ["finetune", "eval"])
def test_dry_run_of_a_stage_shows_the_settings_it_would_use(tmp_path: Path, name: str) -> None:
    given = {"finetune": "num_epochs=7", "eval": "gate_k=7"}[name]
    done = components(name, "--dry-run", "--work", tmp_path / "work", "--profile", "small", given)
    settings = yaml.safe_load(done.output.partition("settings:\n")[2])
    assert set(settings) == set(by_name(name).config.model_fields)
    assert settings[given.partition("=")[0]] == 7
    for artifact in by_name(name).inputs:
        assert f"{artifact}: {tmp_path / 'work' / artifact}  (not there yet)" in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_shown_settings_can_be_given_back(tmp_path: Path) -> None:
    shown = components(
        "prep", "--dry-run", "--profile", "small", "--work", tmp_path, "train_ratio=0.7", "test_ratio=0.3"
    )
    (tmp_path / "prep.yaml").write_text(shown.output.partition("settings:\n")[2])
    again = components("prep", "--dry-run", "--config", tmp_path / "prep.yaml", "--work", tmp_path)
    assert again.output == shown.output


def test_the_command_line_wins_over_the_file_and_the_file_over_the_profile(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("finetune:\n  num_epochs: 4\n  learning_rate: 0.5\ntemperature: 0.25\n")
    config = ["--config", tmp_path / "s.yaml", "--profile", "small", "--work", tmp_path]
    done = components("finetune", "--dry-run", *config, "num_epochs=9")
    settings = yaml.safe_load(done.output.partition("settings:\n")[2])
    found = [settings[name] for name in ("num_epochs", "learning_rate", "temperature", "train_n_passages")]
    assert found == [9, 0.5, 0.25, PROFILES["small"]["finetune.train_n_passages"]]


def test_a_history_without_runs_says_so(tmp_path: Path) -> None:
    done = components("history", tmp_path / "nothing")
    assert (done.code, done.output) == (0, f"{tmp_path / 'nothing'} holds no runs\n")
