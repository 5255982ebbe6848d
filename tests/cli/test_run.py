"""Runs of several stages on one machine: the whole chain, again, and from later starts with artifacts of one's own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from components.deploy.local.releases_on_disk import stop_service
from tests.cli.cli import Done, components, forked_components
from tests.exported import Exported

pytestmark = pytest.mark.slow

NAME = "test-run"
TOPICS = ["assert", "booleans", "break", "continue", "del", "for", "global", "if", "lambda", "return", "while", "yield"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    for name in TOPICS:
        (directory / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    return directory


@pytest.fixture
def service(tmp_path: Path) -> Iterator[list[str]]:
    """Settings of a service of the test's own, which is stopped at the end."""
    state = str(tmp_path / "state")
    yield [f"deploy.served_model_name={NAME}", "deploy.host_port=0", f"deploy.state_dir={state}"]
    stop_service(state, NAME)


def run(work: Path, *arguments: str | Path) -> Done:
    return forked_components("run", "--profile", "small", "--work", work, *arguments)


def times(work: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in work.glob("*/manifest.json")}


def test_the_whole_chain_twice(corpus: Path, service: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    settings = ["eval.min_eval_queries=1", "eval.min_gain=-1", "num_probes=8", *service]
    settings += [f"history_uri={tmp_path / 'history'}"]
    done = run(work, "--corpus", corpus, *settings)
    assert (done.code, done.said) == (0, [])
    for metric in ("nDCG@10", "Recall@10"):
        assert re.search(
            rf"test set, \d+ quer(y|ies) +{re.escape(metric)} +base [01]\.\d+  fine-tuned [01]\.\d+", done.output
        )
    assert re.search(r"Served against PyTorch: mean cosine 1\.000000", done.output)
    (curl,) = re.findall(r"^curl .*$", done.output, flags=re.MULTILINE)
    answer = subprocess.run(shlex.split(curl), capture_output=True, check=True).stdout
    question = json.loads(re.search(r"-d '(.*)'", curl)[1])["input"][0]
    expected = SentenceTransformer(str(work / "checkpoint"), device="cpu").encode(question)
    np.testing.assert_allclose(json.loads(answer)["data"][0]["embedding"], expected, atol=1e-4)
    assert (work / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    before = times(work)
    again = run(work, "--corpus", corpus, *settings)
    assert (again.code, again.said) == (0, [])
    assert re.search(r"^Run .*: 12 documents .* unchanged since .*: ended early", again.output, flags=re.MULTILINE)
    assert {name for name, when in times(work).items() if when > before[name]} == {"past_runs"}
    (corpus / "with.txt").write_text(topics["with"], encoding="utf-8")
    queries = (work / "eval_data" / "queries.jsonl").read_bytes()
    again = run(work, "--corpus", corpus, "--to", "prep", *settings[-1:])
    assert (again.code, again.said) == (0, [])
    after = times(work)
    assert all(after[name] > before[name] for name in ("qa_pairs", "training_data", "eval_data"))
    assert (work / "eval_data" / "queries.jsonl").read_bytes() == queries
    assert "with.txt" in (work / "qa_pairs" / "qa_pairs.jsonl").read_text(encoding="utf-8")


def test_from_labelled_records(tmp_path: Path) -> None:
    """Every process a new one, as a user starts them."""
    records = tmp_path / "records"
    records.mkdir()
    lines = [
        json.dumps({"query": f"what does {name} mean", "positive": topics[name][:300], "document": name})
        for name in TOPICS
    ]
    (records / "mine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = ["--work", tmp_path / "work", "--from", "prep", "--to", "eval", "--qa-pairs", records]
    done = components("run", "--profile", "small", *given, "eval.min_eval_queries=1")
    assert (done.code, done.said) == (0, [])
    assert re.search(r"test set, \d quer(y|ies)", done.output)
    assert SentenceTransformer(str(tmp_path / "work/checkpoint"), device="cpu").encode("x").shape == (384,)


def test_from_a_checkpoint_that_the_gate_refuses(minilm: Exported, tmp_path: Path) -> None:
    given = ["--checkpoint", minilm.checkpoint, "--eval-data", minilm.eval_data]
    done = run(tmp_path / "work", "--from", "eval", *given, "eval.min_gain=0.9")
    assert (done.code, done.said) == (0, [])
    assert done.output.startswith("Done: eval. ")
    assert "Quality gate NOT passed, nothing was exported or deployed" in done.output
    assert (tmp_path / "work" / "eval_results").is_dir()
    assert not (tmp_path / "work" / "exported_model").exists()
