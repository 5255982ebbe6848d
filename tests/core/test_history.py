"""What recurring runs know of each other, in a directory and in a bucket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.core.artifacts import seal
from components.core.errors import ActionNeeded, InputError, StageError
from components.core.history import (
    CorpusChange,
    History,
    Promotion,
    RunContext,
    Verdict,
    new_run_name,
    read_run_context,
)
from components.core.runner import Source, fetch_champion_artifacts
from components.eval.component import STAGE as EVAL
from tests.storage.s3_server import S3Server, s3_server

STARTED = CorpusChange(documents=2, new=2, changed=0, removed=0, documents_digest="d", settings_digest="s")
PASSED = Verdict(passed=True, reasons=("better",), metric="NDCG@10", queries=30, scores={"base": 0.5, "finetuned": 0.6})
REFUSED = PASSED.model_copy(update={"passed": False, "reasons": ("worse than the champion",)})
SERVED = Promotion(target="local", endpoint="http://127.0.0.1:8000", digest="a" * 64)


@pytest.fixture(params=["directory", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "not there yet" / "history")
        return
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/team/history/"


def artifact(directory: Path, kind: str, content: str) -> Path:
    (directory / "onnx").mkdir(parents=True)
    (directory / "onnx" / "weights").write_text(content)
    seal(directory, kind)
    return directory


def test_a_new_history_knows_nothing(uri: str) -> None:
    history = History(uri)
    assert (history.read_runs(), history.find_champion(), history.find_last_settled_run()) == ([], None, None)


def test_the_champion_is_the_newest_model_that_is_served(uri: str) -> None:
    history = History(uri)
    for run, judged, served in (
        ("1", PASSED, SERVED),
        ("2", PASSED, SERVED),
        ("3", REFUSED, None),
        ("4", PASSED, None),
    ):
        history.write(run, STARTED, {"a.txt": run})
        history.write(run, judged)
        if served:
            history.write(run, served)
    history.write("5", STARTED, {})
    assert history.find_champion() == "2"
    # 4 was not deployed and 5 not judged: their work has to be done again. 3 was refused, and would be again.
    assert history.find_last_settled_run().name == "3"
    assert history.read_document_digests("3") == {"a.txt": "3"}
    said = [run.summary() for run in history.read_runs()]
    assert "promoted (local): http://127.0.0.1:8000" in said[1]
    assert said[2].endswith("not promoted: worse than the champion")
    assert "gate passed, not deployed" in said[3]
    assert said[4].endswith("not finished")
    assert history.summarize_last_runs() == said[::-1]
    assert [run.name for run in history.read_runs(since="3")] == ["3", "4", "5"]
    assert [run.name for run in history.read_runs(since="2", newest=2)] == ["4", "5"]


def test_many_runs_are_listed_once_and_only_the_last_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(str(tmp_path))
    for number in range(60):
        history.write(f"{number:03}", STARTED, {})
    listed, read = [], []
    store = type(history._store)
    names, get = store.list_names, store.read
    monkeypatch.setattr(store, "list_names", lambda self, *a: listed.append(a) or names(self, *a))
    monkeypatch.setattr(store, "read", lambda self, name: read.append(name) or get(self, name))
    assert [line[:3] for line in history.summarize_last_runs()] == [f"{number:03}" for number in range(59, 39, -1)]
    assert (len(listed), len(read)) == (1, 20)


def test_a_model_comes_back_as_it_was_and_old_ones_go(uri: str, tmp_path: Path) -> None:
    history = History(uri)
    for run in ("1", "2", "3"):
        history.store_artifact(run, "checkpoint", artifact(tmp_path / run, "checkpoint", f"model {run}"))
        history.write(run, SERVED)
    history.delete_artifacts_before("2")
    history.fetch_artifact("2", "checkpoint", tmp_path / "back")
    assert (tmp_path / "back" / "onnx" / "weights").read_text() == "model 2"
    with pytest.raises(ActionNeeded, match=r"runs/1/checkpoint is not whole .* remove runs/1/served.json"):
        history.fetch_artifact("1", "checkpoint", tmp_path / "gone")
    assert history.read_run("1").promotion == SERVED


def test_what_was_changed_or_cut_short_is_no_champion(tmp_path: Path) -> None:
    history = History(str(tmp_path / "history"))
    history.store_artifact("1", "checkpoint", artifact(tmp_path / "made", "checkpoint", "model"))
    kept = tmp_path / "history" / "runs" / "1" / "checkpoint"
    (kept / "onnx" / "weights").write_text("other")
    with pytest.raises(ActionNeeded, match="onnx/weights does not have the sha256"):
        history.fetch_artifact("1", "checkpoint", tmp_path / "a")
    (kept / "manifest.json").unlink()
    with pytest.raises(ActionNeeded, match=r"has no manifest\.json"):
        history.fetch_artifact("1", "checkpoint", tmp_path / "b")


def test_the_artifact_leads_to_the_champions_parts_unless_others_are_given(uri: str, tmp_path: Path) -> None:
    champion, name = artifact(tmp_path / "made", "checkpoint", "champion"), new_run_name()
    History(uri).store_artifact(name, "checkpoint", champion)
    RunContext(uri, new_run_name(), STARTED, champion=name).write(tmp_path / "artifact")
    assert read_run_context(tmp_path / "artifact").champion == name
    past_runs, other = Source(tmp_path / "artifact"), Source(tmp_path / "other")
    with fetch_champion_artifacts(EVAL, {"past_runs": past_runs}) as fetched:
        assert (fetched["champion"] / "onnx" / "weights").read_text() == "champion"
    with fetch_champion_artifacts(EVAL, {"past_runs": past_runs, "champion": other}) as fetched:
        assert fetched == {}
    RunContext("", "", STARTED).write(tmp_path / "alone")
    assert read_run_context(tmp_path / "alone") is None
    with fetch_champion_artifacts(EVAL, {"past_runs": Source(tmp_path / "alone")}) as fetched:
        assert fetched == {}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", "expected a directory"),
        ("s3://", "is no address of a bucket"),
        ("s3://[bucket", "is no address"),
    ],
)
def test_another_address_is_wrong_input(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        History(uri)


def test_a_bucket_that_refuses_needs_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        use(server, monkeypatch)
        server.put_status = 403
        with pytest.raises(ActionNeeded, match="access is refused"):
            History("s3://bucket/history").write("1", STARTED)


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    record = tmp_path / "runs" / "1" / "judged.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(StageError, match=r"runs/1/judged\.json cannot be read"):
        History(str(tmp_path)).read_runs()


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_names_of_runs_sort_by_time_within_a_second_too() -> None:
    names = []
    for _ in range(50):
        names.append(new_run_name())
        time.sleep(1e-5)
    assert names == sorted(set(names))
