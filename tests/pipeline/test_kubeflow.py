"""Runs, versions and schedules on a Kubeflow Pipelines server, as CI and people start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from components.core.history import CorpusChange, History, Verdict
from components.kubeflow import server as kubeflow
from tests.pipeline.compiled import parse
from tests.pipeline.kfp_api import KfpApi, serving

ROOT = Path(__file__).resolve().parents[2]
CORPUS = "corpus_uri=s3://bucket/documents"


@pytest.fixture(scope="module")
def compile_once() -> Callable[..., str]:
    """pipeline.compile_plan, which makes the same bytes of the same plan and options, once for each of them."""
    compiled: dict[str, str] = {}
    compile_plan = pipeline.compile_plan

    def compile_once(*given: Any) -> str:
        key = repr(given)
        if key not in compiled:
            compiled[key] = compile_plan(*given)
        return compiled[key]

    return compile_once


@pytest.fixture
def server(compile_once: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpApi]:
    for name in ("KFP_TOKEN", "KFP_COOKIES", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kubeflow, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(pipeline, "compile_plan", compile_once)
    with serving() as state:
        yield state


def call(server: KfpApi, *arguments: str) -> int:
    command = [*arguments[:2]] if arguments[0] == "schedule" else [arguments[0]]
    return pipeline.main([*command, "--host", server.url, *arguments[len(command) :]])


def test_submit_starts_the_pipeline_with_what_was_given(server: KfpApi, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("num_epochs: 5\nlearning_rate: 2e-5\nfinetune_overrides: {seed: 7}\n")
    options = ["--params", str(tmp_path / "params.yaml"), "--run-name", "tuesday", "--experiment", "docs"]
    options += ["--service-account", "runner", "--pipeline-root", "s3://bucket/root"]
    assert call(server, "submit", CORPUS, "num_epochs=2", *options) == 0
    (run,) = server.runs
    assert run.runtime_config.parameters == {
        "corpus_uri": "s3://bucket/documents", "num_epochs": 2, "learning_rate": 2e-5, "finetune_overrides": {"seed": 7}
    }  # fmt: skip
    assert (run.display_name, run.service_account) == ("tuesday", "runner")
    assert run.runtime_config.pipeline_root == "s3://bucket/root"
    assert [experiment.display_name for experiment in server.experiments] == ["docs"]
    spec = yaml.safe_dump_all([run.pipeline_spec["pipeline_spec"], run.pipeline_spec["platform_spec"]])
    assert parse(spec).spec.pipeline_info.name == "nemotron-embed"


def test_the_same_experiment_serves_again(server: KfpApi) -> None:
    assert call(server, "submit", CORPUS) == call(server, "submit", CORPUS) == 0
    assert (len(server.experiments), len(server.runs)) == (1, 2)


def test_wait_shows_each_change_once_and_ends_with_the_run(server: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    server.course = [
        ("RUNNING", {"sdg": "RUNNING", "sdg-driver": "SUCCEEDED"}),
        ("RUNNING", {"sdg": "RUNNING"}),
        ("RUNNING", {"sdg": "SUCCEEDED", "prep": "RUNNING"}),
        ("SUCCEEDED", {"sdg": "SUCCEEDED", "prep": "SUCCEEDED"}),
    ]
    assert call(server, "submit", CORPUS, "--wait") == 0
    link, run_id, *shown = capsys.readouterr().out.splitlines()
    assert link == f"Run details: {server.url}/#/runs/details/{server.runs[0].run_id}"
    assert run_id == f"Run id: {server.runs[0].run_id}"
    assert shown == ["sdg: running", "run: running", "sdg: succeeded", "prep: running", "prep: succeeded",
                     "run: succeeded"]  # fmt: skip


def test_waiting_ends_with_the_runs_figures_where_it_keeps_a_history(
    server: KfpApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History(str(tmp_path))
    started = CorpusChange(documents=9, new=9, changed=0, removed=0, documents_digest="d", settings_digest="s")
    scores = {"base": 0.61, "finetuned": 0.72}
    verdict = Verdict(passed=False, reasons=("no better",), metric="NDCG@10", queries=50, scores=scores)
    history.write("20000101T000000Z-aaaaaa", started)
    history.write("20260101T100007Z-bbbbbb", started)
    history.write("20260101T100007Z-bbbbbb", verdict)
    history.write("20260102T100007Z-cccccc", started)
    assert call(server, "submit", CORPUS, "--wait", f"history_uri={tmp_path}") == 0
    said = capsys.readouterr().out
    assert "NDCG@10 base 0.6100, finetuned 0.7200 on 50 queries; not promoted: no better" in said
    assert "20000101" not in said
    assert "20260102" not in said
    assert call(server, "submit", CORPUS, "--wait", "history_uri=ftp://nowhere") == 0
    assert "cannot be read from here" in capsys.readouterr().out


CANARY = "canary-0123456789"
ROUTES = {
    "password in an address": ["llm_base_url=https://user:canary-0123456789@llm.example.com/v1"],
    "password in a bucket": ["history_uri=s3://key:canary-0123456789@bucket/history"],
    "a password in the corpus": ["corpus_uri=s3://key:canary-0123456789@bucket/documents"],
    "the key for the name of its variable": ["sdg_overrides={api_key_env: nvapi-canary-0123456789}"],
    "a header": [
        "sdg_overrides={providers: {a: {base_url: 'https://a', headers: {Authorization: canary-0123456789}}}}"
    ],
    "a setting that is none": ["sdg_overrides={nvidia_api_key: canary-0123456789}"],
    "a field that is none": ["api_key=canary-0123456789"],
    "a default of the form": ["--set", "sdg.llm_base_url=https://u:canary-0123456789@llm.example.com/v1"],
}


@pytest.mark.parametrize("options", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("command", ["submit", "schedule"])
def test_no_way_leads_a_secret_into_a_run(
    server: KfpApi, command: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["submit"] if command == "submit" else ["schedule", "create", "nightly", "--cron", "0 2 * * *"]
    assert call(server, *start, CORPUS, *options) == 2
    assert server.requests == []
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    if options[0] == "--set":
        assert pipeline.main(["compile", *options, "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_does_not_succeed_is_exit_code_3(
    server: KfpApi, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.course = [("RUNNING", {}), (state, {"eval": state})]
    assert call(server, "submit", CORPUS, "--wait") == 3
    assert f"ended as {state}" in capsys.readouterr().err


def test_a_run_that_lasts_too_long_goes_on_and_is_exit_code_75(
    server: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    server.course = [("RUNNING", {})]
    assert call(server, "submit", CORPUS, "--wait", "--timeout", "0.2") == 75
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    command = re.search(r"`python pipeline\.py (wait \S+)` follows it", said)
    assert command
    server.course = [("SUCCEEDED", {"sdg": "SUCCEEDED"})]
    assert call(server, *command[1].split()) == 0
    assert capsys.readouterr().out.splitlines() == ["sdg: succeeded", "run: succeeded"]
    assert len(server.runs) == 1


def test_a_run_that_was_started_elsewhere_is_followed_with_its_figures(
    server: KfpApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = CorpusChange(documents=9, new=9, changed=0, removed=0, documents_digest="d", settings_digest="s")
    History(str(tmp_path)).write("20260101T100007Z-aaaaaa", started)
    assert call(server, "submit", CORPUS, f"history_uri={tmp_path}") == 0
    (run,) = server.runs
    capsys.readouterr()
    server.course = [("RUNNING", {"sdg": "RUNNING"}), ("FAILED", {"sdg": "FAILED"})]
    assert call(server, "wait", run.run_id) == 3
    said = capsys.readouterr()
    assert said.out.startswith("sdg: running\nrun: running\nsdg: failed\nrun: failed\n20260101T100007Z-aaaaaa: 9 doc")
    assert "ended as FAILED" in said.err


def test_following_a_run_that_is_not_there_is_wrong_input(server: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "wait", "nothing") == 2
    assert "Run nothing not found" in capsys.readouterr().err


def test_a_connection_that_stays_lost_names_the_command_that_goes_on(
    server: KfpApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kubeflow, "_FAILED_POLLS", 2)
    server.intercept = lambda method, path: (503, {}) if method == "GET" and "/runs/" in path else None
    assert call(server, "submit", CORPUS, "--wait") == 75
    assert f"`python pipeline.py wait {server.runs[0].run_id}` follows it" in capsys.readouterr().err


def test_a_server_that_restarts_does_not_end_the_wait(server: KfpApi) -> None:
    failures = iter([503, 502, 500])

    def intercept(method: str, path: str) -> Any:
        if method == "GET" and "/runs/" in path and (status := next(failures, None)):
            return status, {"error": "restarting"}
        return None

    server.intercept = intercept
    assert call(server, "submit", CORPUS, "--wait") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param([], "corpus_uri: give the address", id="missing"),
        pytest.param([CORPUS, "num_epoch=3"], "did you mean 'num_epochs'", id="unknown"),
        pytest.param([CORPUS, "num_epochs=many"], "num_epochs = 'many': expected a whole number", id="type"),
        pytest.param([CORPUS, "num_epochs=0"], "finetune: num_epochs", id="range"),
        pytest.param([CORPUS, "max_tokens_total=some"], "sdg: max_tokens_total", id="text that may be null"),
        pytest.param([CORPUS, "prep_overrides={trian_ratio: 0.5}"], "did you mean 'train_ratio'", id="override"),
        pytest.param([CORPUS, "prep_overrides=0.5"], "prep_overrides = '0.5': expected a mapping", id="no mapping"),
        pytest.param([CORPUS, "finetune_node_selector={a: [}"], "expected a mapping", id="no YAML"),
        pytest.param([CORPUS, "num_epochs"], "expected NAME=VALUE", id="no value"),
        pytest.param([CORPUS, "--params", "nowhere.yaml"], "nowhere.yaml cannot be read", id="no file"),
        pytest.param(["corpus_uri=hf://team/docs"], "use --without corpus, and sources of sdg_overrides", id="hub"),
        pytest.param(["corpus_uri=documents"], "corpus_uri is no address", id="a directory of this machine"),
        pytest.param(["--without", "corpus"], "sdg_overrides: set sources", id="neither corpus nor sources"),
        pytest.param(["--without", "corpus", CORPUS], "no field 'corpus_uri'", id="corpus left out and given"),
        pytest.param(["--without", "qa_pairs", CORPUS], "no chosen stage can do without it", id="needed"),
        pytest.param(
            ["--without", "corpus", "sdg_overrides={sources: [{uri: 'hf://team/docs@main'}]}"], "40 hex", id="no commit"
        ),
    ],
)
def test_wrong_parameters_are_named_before_the_server_is_asked(
    server: KfpApi, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(server, "submit", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        pytest.param((401, {"error": "who?"}), 3, "check KFP_TOKEN", id="401"),
        pytest.param((403, {"error": "not yours"}), 3, "not yours", id="403"),
        pytest.param((400, {"error": "bad name"}), 2, "bad name", id="400"),
        pytest.param((429, {}), 75, "429", id="429"),
        pytest.param((500, b"<html>oops</html>"), 75, "500", id="500"),
        pytest.param((503, {}), 75, "503", id="503"),
        pytest.param(b"<html>Log in</html>", 3, "no Kubeflow Pipelines API", id="login page"),
        pytest.param(b"[]", 3, "no Kubeflow Pipelines API", id="a list"),
    ],
)
@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["submit", CORPUS], "experiments"),
        (["submit", CORPUS], "runs"),
        (["wait", "some-run"], "runs"),
        (["upload"], "pipelines"),
        (["schedule", "create", "nightly", "--cron", "0 2 * * *", CORPUS], "pipelines"),
        (["schedule", "create", "nightly", "--cron", "0 2 * * *", CORPUS], "recurringruns"),
        (["schedule", "list"], "experiments"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_what_the_server_refuses_is_one_line(
    server: KfpApi,
    command: list[str],
    where: str,
    answer: Any,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kubeflow, "_FAILED_POLLS", 1)
    server.intercept = lambda method, path: answer if where in path else None
    assert call(server, *command) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["submit"], ["upload"], ["schedule", "create", "nightly", "--cron", "0 2 * * *"]])
def test_a_server_that_never_answers_is_exit_code_75(
    server: KfpApi, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kubeflow, "_TIMEOUT_SECONDS", 0.2)
    released = threading.Event()

    def silent(method: str, path: str) -> None:
        if not path.endswith("healthz"):
            released.wait(20)

    server.intercept = silent
    try:
        assert call(server, *command, *([] if command == ["upload"] else [CORPUS])) == 75
    finally:
        released.set()
    assert "timed out" in capsys.readouterr().err


def test_no_server_is_one_line_and_exit_code_75(tmp_path: Path) -> None:
    """In a process of its own: what the SDK logs is caught by pytest otherwise."""
    argv = [sys.executable, "pipeline.py", "submit", "--host", "http://127.0.0.1:9", CORPUS]
    environment = {**os.environ, "HOME": str(tmp_path)}
    ended = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert "cannot be reached" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_credentials_come_from_the_environment(server: KfpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", "canary-token")
    monkeypatch.setenv("KFP_COOKIES", "authservice_session=canary-session")
    assert call(server, "submit", CORPUS, "--namespace", "team") == 0
    for _, _, headers in server.requests:
        assert headers["authorization"] == "Bearer canary-token"
        assert headers["cookie"] == "authservice_session=canary-session"
    assert "canary" not in str(server.runs)


def test_upload_makes_a_version_once(server: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    for said in ("uploaded", "is there already"):
        assert call(server, "upload", "--from", "prep", "--version", "1.2") == 0
        assert said in capsys.readouterr().out
    assert call(server, "upload", "--from", "prep", "--version", "1.3") == 0
    assert [pipeline.display_name for pipeline in server.pipelines] == ["nemotron-embed-from-prep"]
    assert [version.display_name for version in server.versions] == ["1.2", "1.3"]
    assert parse(server.uploaded[0].decode()).spec.pipeline_info.name == "nemotron-embed-from-prep"


def test_a_version_is_never_overwritten(server: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(server, "upload") == 0
    assert call(server, "upload", "--set", "num_epochs=9") == 2
    assert "choose another --version" in capsys.readouterr().err
    assert len(server.uploaded) == 1


def test_two_uploads_at_the_same_time_make_one_version(server: KfpApi) -> None:
    """The other one comes between looking and making, for the pipeline and for the version."""
    inner: list[int] = []

    def intercept(method: str, path: str) -> Any:
        if method == "POST" and not inner:
            inner.append(1)
            assert call(server, "upload") == 0
        return None

    server.intercept = intercept
    assert call(server, "upload") == 0
    assert (len(server.pipelines), len(server.versions)) == (1, 1)


def schedule(server: KfpApi, *options: str, cron: str = "0 2 * * *") -> int:
    uri = "corpus_uri=s3://bucket/[[ScheduledTime.2006-01-02]]/"
    return call(server, "schedule", "create", "nightly", "--cron", cron, uri, *options)


def test_a_schedule_is_made_once_and_pins_the_version(server: KfpApi, capsys: pytest.CaptureFixture[str]) -> None:
    for said in ("nightly: scheduled (0 0 2 * * *)", "nightly: is scheduled so already"):
        assert schedule(server) == 0
        assert said in capsys.readouterr().out
    (made,) = server.recurring
    assert made.trigger.cron_schedule.cron == "0 0 2 * * *"
    assert made.pipeline_version_reference.pipeline_version_id == server.versions[0].pipeline_version_id
    assert made.runtime_config.parameters == {"corpus_uri": "s3://bucket/[[ScheduledTime.2006-01-02]]/"}
    assert (made.mode, str(made.max_concurrency), made.no_catchup) == ("ENABLE", "1", True)


def test_a_schedule_that_changed_takes_the_old_ones_place_and_stays_paused(
    server: KfpApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schedule(server) == 0
    assert call(server, "schedule", "pause", "nightly") == 0
    assert schedule(server, "num_epochs=2", cron="0 30 3 * * *") == 0
    (made,) = server.recurring
    assert (made.mode, made.trigger.cron_schedule.cron) == ("DISABLE", "0 30 3 * * *")
    assert made.runtime_config.parameters["num_epochs"] == 2
    capsys.readouterr()
    assert call(server, "schedule", "list") == 0
    assert "nightly  0 30 3 * * *  paused  s3://bucket/" in capsys.readouterr().out
    assert call(server, "schedule", "resume", "nightly") == 0
    assert server.recurring[0].mode == "ENABLE"
    assert call(server, "schedule", "delete", "nightly") == 0
    assert server.recurring == []


def test_a_schedule_that_cannot_be_made_leaves_the_old_one(server: KfpApi) -> None:
    assert schedule(server) == 0
    server.intercept = lambda method, path: (
        (500, {}) if (method, path.rpartition("/")[2]) == ("POST", "recurringruns") else None
    )
    assert schedule(server, "num_epochs=2") == 75
    assert len(server.recurring) == 1


@pytest.mark.parametrize("action", ["pause", "resume", "delete"])
def test_a_schedule_that_is_not_there_is_wrong_input(server: KfpApi, action: str) -> None:
    assert call(server, "schedule", action, "nightly") == 2


@pytest.mark.parametrize("cron", ["daily", "* * *", "0 2 * * * * *", "0 2 * * $(x)"])
def test_what_is_no_cron_expression_is_wrong_input(server: KfpApi, cron: str) -> None:
    assert schedule(server, cron=cron) == 2
    assert server.requests == []
