"""Runs on a corpus that grows, through the compiled pipeline: KFP executes it, the stages do real work on a CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from kfp.components import load_component_from_file

import pipeline
from components.__main__ import main
from components.core.history import History
from components.deploy.local.releases_on_disk import stop_service
from tests.pipeline.on_this_host import Task, host
from tests.sdg.llm_server import LlmServer, llm_server

pytestmark = pytest.mark.slow

NAME = "recurring"
FIRST = ["assert", "booleans", "break", "continue", "del", "for", "global", "if", "lambda", "return", "while", "yield"]
STAGES = ["sdg", "prep", "finetune", "eval", "export", "deploy"]


@dataclass
class Schedule:
    """What a recurring run has at hand: the same parameters every time."""

    compiled: Path
    corpus: Path
    directory: Path
    llm: LlmServer
    parameters: dict[str, Any]
    runs: list[list[Task]] = field(default_factory=list)

    @property
    def history(self) -> History:
        return History(self.parameters["history_uri"])

    def add(self, *names: str) -> None:
        for name in names:
            (self.corpus / f"{name}.txt").write_text(topics[name], encoding="utf-8")

    def run(self, **changed: Any) -> list[str]:
        """The next run; return what it asked the LLM."""
        self.llm.requests.clear()
        with host(self.root(len(self.runs))) as runner:
            runner.environment["NVIDIA_API_KEY"] = "nvapi-canary"
            load_component_from_file(str(self.compiled))(**self.parameters | changed)
        self.runs.append(runner.tasks)
        assert all(task.code == 0 for task in runner.tasks)
        return [json.dumps(body) for _, body in self.llm.requests]

    def root(self, number: int) -> Path:
        return self.directory / f"run-{number}"

    def stages(self, number: int) -> list[str]:
        return [task.stage for task in self.runs[number]]

    def artifact(self, number: int, name: str) -> Path:
        (found,) = self.root(number).rglob(name)
        return found


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schedule]:
    """Four runs: the first one, one without news, one with three new documents, one with one more."""
    directory = tmp_path_factory.mktemp("recurring")
    assert pipeline.main([
        "compile", "--from", "sdg", "--profile", "small", "--node-labels", "none", "--out", str(directory),
        "--set", "sdg.generator=llm", "--set", "num_pairs=3",
    ]) == 0  # fmt: skip
    corpus, state = directory / "corpus", str(directory / "state")
    corpus.mkdir()
    with llm_server() as llm:
        parameters = {
            "corpus_uri": str(corpus),
            "history_uri": str(directory / "history"),
            "llm_base_url": llm.url,
            "min_gain": -1.0,
            "quality_threshold": 0.0,
            "eval_overrides": {"min_eval_queries": 1, "min_champion_gain": -1.0},
            "export_overrides": {"num_probes": 8},
            "served_model_name": NAME,
            "deploy_overrides": {"target": "local", "host_port": 0, "state_dir": state},
        }
        made = Schedule(directory / "nemotron-embed.yaml", corpus, directory, llm, parameters)
        try:
            yield made
        finally:
            stop_service(state, NAME)


def test_recurring_runs_on_a_growing_corpus(schedule: Schedule, capsys: pytest.CaptureFixture[str]) -> None:
    schedule.add(*FIRST)
    asked = schedule.run()
    first = schedule.history.find_champion()
    assert (schedule.stages(0), bool(asked), bool(first)) == (STAGES, True, True)

    # Nothing new: green, nothing paid, nothing trained, and the reason is said.
    assert schedule.run() == []
    assert schedule.stages(1) == ["sdg"]
    assert f"unchanged since {first}" in schedule.runs[1][0].output
    assert "Nothing new" in schedule.artifact(1, "generation_report").read_text(encoding="utf-8")

    # Three new documents: only they are paid for, the test set is the same, the model meets the champion.
    new = ["with", "try", "class"]
    schedule.add(*new)
    asked = schedule.run()
    assert schedule.stages(2) == STAGES
    chats = [text for text in asked if "messages" in text and "pair_id" not in text]
    openings = [json.dumps(topics[name].strip()[:60])[1:-1].split("\\n")[0] for name in new]
    assert chats
    assert all(any(opening in text for opening in openings) for text in chats)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (schedule.artifact(2, "eval_data") / name).read_bytes() == (
            schedule.artifact(0, "eval_data") / name
        ).read_bytes()
    before, now = (
        json.loads((schedule.artifact(number, "eval_results") / "eval_results.json").read_text(encoding="utf-8"))
        for number in (0, 2)
    )
    assert "champion" not in before
    assert now["champion"]["NDCG"] == pytest.approx(before["finetuned"]["NDCG"])
    third = schedule.history.find_champion()
    assert third != first
    found = schedule.history.read_run(third)
    assert (found.corpus.new, found.corpus.changed, found.corpus.removed) == (3, 0, 0)
    assert found.promotion.endpoint
    assert f"{third}: 15 documents (3 new" in schedule.artifact(2, "report").read_text(encoding="utf-8")

    # A model that does not beat the champion changes nothing, and the next run need not try again.
    schedule.add("raise")
    schedule.run(eval_overrides={"min_eval_queries": 1, "min_champion_gain": 2.0})
    assert schedule.stages(3) == STAGES[:4]
    assert schedule.history.find_champion() == third
    assert schedule.run() == []
    assert schedule.stages(4) == ["sdg"]

    assert main(["history", str(schedule.history.uri)]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("20")]
    for line, words in zip(
        lines, ("promoted", "unchanged since", "promoted", "not promoted", "unchanged"), strict=True
    ):
        assert words in line
    assert "min_champion_gain 2" in lines[3]
    assert "nvapi-canary" not in said
