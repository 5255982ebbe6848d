"""A stage publishes a whole output or nothing, whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from components.core.artifacts import MANIFEST, seal, verify
from components.core.errors import InputError, StageError
from components.core.runner import Outcome, Source, execute
from components.core.settings import Settings, setting
from components.core.stage import Stage
from tests.waiting import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]


class TrialConfig(Settings):
    size: int = setting(3, "Lines to write")


TRIAL = Stage(
    name="trial",
    summary="Writes lines",
    config=TrialConfig,
    inputs=("corpus",),
    optional_inputs=("golden_eval",),
    by_uri=("exported_model",),
    outputs=("eval_results", "report"),
    results={"passed": bool, "eval_results_uri": str},
    headline=("gain", "passed", "missing"),
)
URIS = {"exported_model": "s3://bucket/model", "eval_results": "s3://bucket/run/eval_results", "report": "s3://b/r"}
# A program that has written half of its output when it says so, and then waits.
KILLED = """
import sys, time
from pathlib import Path
import tests_runner as here

def run(config, *, eval_results, report, **_):
    eval_results.mkdir()
    (eval_results / "half").write_text("half")
    report.write_text("half")
    print("half", flush=True)
    time.sleep(3600)

here.install(run)
here.run_trial(Path(sys.argv[1]))
"""


def install(run: Callable[..., dict[str, Any]]) -> None:
    """Make ``run`` the program of the stage ``trial``."""
    module = ModuleType("components.trial.program")
    module.run = run  # type: ignore[attr-defined]
    sys.modules |= {"components.trial": ModuleType("components.trial"), "components.trial.program": module}


def run_trial(work: Path, **inputs: Source) -> Outcome:
    (work / "corpus").mkdir(parents=True, exist_ok=True)
    return execute(
        TRIAL,
        TrialConfig(),
        inputs={"corpus": Source(work / "corpus"), **inputs},
        outputs={name: work / "out" / name for name in TRIAL.outputs},
        uris=URIS,
    )


def good(config: TrialConfig, *, eval_results: Path, report: Path, **_: Any) -> dict[str, Any]:
    eval_results.mkdir()
    (eval_results / "lines.txt").write_text("line\n" * config.size)
    report.write_text("<p>good")
    return {"passed": True, "gain": 0.5, "undefined": float("nan"), "note": "text", "record": {"a": 1}}


def failing(error: BaseException) -> Callable[..., dict[str, Any]]:
    def run(config: TrialConfig, *, eval_results: Path, report: Path, **_: Any) -> dict[str, Any]:
        eval_results.mkdir()
        (eval_results / "half").write_text("half")
        report.write_text("half")
        raise error

    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def _no_program_is_left() -> Any:
    yield
    for name in ("components.trial", "components.trial.program"):
        sys.modules.pop(name, None)


def test_a_person_reads_what_runs_and_its_headline_and_no_json(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(good)
    with caplog.at_level("INFO", logger="components"):
        run_trial(tmp_path)
    assert caplog.messages == ["Writes lines ...", "done in 0 s: gain 0.5, passed yes"]
    with caplog.at_level("DEBUG", logger="components"):
        run_trial(tmp_path)
    assert 'settings {"size": 3}' in caplog.messages


def test_publishes_what_the_program_made(tmp_path: Path) -> None:
    install(good)
    outcome = run_trial(tmp_path)
    out = tmp_path / "out"
    assert set(contents(out)) == {"eval_results/lines.txt", f"eval_results/{MANIFEST}", "report"}
    assert verify(out / "eval_results", "eval_results", sealed=True) == outcome.digests["eval_results"]
    assert outcome.results == {"passed": True, "eval_results_uri": "s3://bucket/run/eval_results"}


def test_figures_are_finite_and_plain(tmp_path: Path) -> None:
    install(good)
    metrics = run_trial(tmp_path).metrics
    assert metrics.pop("seconds") >= 0
    assert metrics == {"passed": True, "gain": 0.5, "note": "text"}


def test_the_program_gets_what_the_declaration_says(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def run(config: TrialConfig, **given: Any) -> dict[str, Any]:
        seen.update(given)
        return good(config, **given)

    install(run)
    run_trial(tmp_path)
    assert seen["corpus"] == tmp_path / "corpus"
    assert seen["golden_eval"] is None
    assert seen["exported_model_uri"] == "s3://bucket/model"
    assert set(seen) == {"corpus", "golden_eval", "exported_model_uri", "eval_results", "report"}


@pytest.mark.parametrize("error", [InputError("bad"), ValueError("bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("earlier", [False, True], ids=["first run", "after a good run"])
def test_a_failing_program_changes_nothing(tmp_path: Path, error: BaseException, earlier: bool) -> None:
    if earlier:
        install(good)
        run_trial(tmp_path)
    before = contents(tmp_path)
    install(failing(error))
    with pytest.raises(type(error)):
        run_trial(tmp_path)
    assert contents(tmp_path) == before


def test_running_out_of_memory_is_said_in_one_line(tmp_path: Path) -> None:
    install(failing(MemoryError()))
    with pytest.raises(StageError, match="trial: out of memory"):
        run_trial(tmp_path)


def test_a_program_that_forgets_an_output_publishes_none(tmp_path: Path) -> None:
    def run(config: TrialConfig, *, eval_results: Path, **_: Any) -> dict[str, Any]:
        eval_results.mkdir()
        return {"passed": True}

    install(run)
    with pytest.raises(StageError, match="made no report"):
        run_trial(tmp_path)
    assert contents(tmp_path) == {}


def test_a_program_that_forgets_a_result_publishes_nothing(tmp_path: Path) -> None:
    def run(config: TrialConfig, **given: Any) -> dict[str, Any]:
        return {name: value for name, value in good(config, **given).items() if name != "passed"}

    install(run)
    with pytest.raises(StageError, match="passed"):
        run_trial(tmp_path)
    assert contents(tmp_path) == {}


def test_a_complete_output_replaces_the_previous_one(tmp_path: Path) -> None:
    install(good)
    run_trial(tmp_path)
    (tmp_path / "out" / "eval_results" / "stale").touch()
    run_trial(tmp_path)
    assert not (tmp_path / "out" / "eval_results" / "stale").exists()
    assert verify(tmp_path / "out" / "eval_results", "eval_results", sealed=True)


def test_a_damaged_input_is_refused_before_the_program_runs(tmp_path: Path) -> None:
    install(failing(AssertionError("the program ran")))
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "queries.jsonl").write_text("{}")
    seal(golden, "golden_eval")
    (golden / "queries.jsonl").write_text("{ }")
    with pytest.raises(InputError, match="sha256"):
        run_trial(tmp_path, golden_eval=Source(golden, sealed=True))


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    install(good)
    with pytest.raises(InputError, match="golden_eval: there is no directory"):
        run_trial(tmp_path, golden_eval=Source(tmp_path / "nowhere"))


@pytest.mark.parametrize("earlier", [False, True], ids=["first run", "after a good run"])
def test_killed_in_the_middle_publishes_nothing(tmp_path: Path, earlier: bool) -> None:
    if earlier:
        install(good)
        run_trial(tmp_path)
    out = tmp_path / "out"
    before = contents(out) if earlier else {}
    kill_in_the_middle(tmp_path)
    published = {name: content for name, content in contents(out).items() if ".partial" not in name}
    assert published == before
    install(good)
    run_trial(tmp_path)
    assert not list(out.glob("*.partial"))
    assert verify(out / "eval_results", "eval_results", sealed=True)


def kill_in_the_middle(work: Path) -> None:
    """Run the stage in a process of its own and end it with SIGKILL while its program is writing."""
    program = f"import importlib.util as u, sys\nspec = u.spec_from_file_location('tests_runner', {__file__!r})\n"
    program += "sys.modules['tests_runner'] = here = u.module_from_spec(spec)\nspec.loader.exec_module(here)\n" + KILLED
    process = subprocess.Popen([sys.executable, "-c", program, str(work)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=LIMIT_SECONDS) == -signal.SIGKILL
    process.stdout.close()
