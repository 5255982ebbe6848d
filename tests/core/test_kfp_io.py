"""A stage as a KFP task: what it reads from the executor input and what it answers, in kfp's own message types."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format
from kfp import dsl
from kfp.pipeline_spec import pipeline_spec_pb2 as messages

from components.core.artifacts import ARTIFACTS, ArtifactType, seal
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.kfp_io import local_path, run_from_executor_input
from components.core.settings import setting
from components.core.stage import Stage


class TrialConfig(EncoderConfig):
    rounds: int = setting(1, "Rounds", ge=1)
    rate: float = setting(0.5, "Rate")
    cutoffs: list[int] = setting([1], "Cut-offs")
    limit: int | None = setting(3, "Most rounds, null for no limit")
    place: str | None = setting(None, "Where")


TRIAL = Stage(
    name="trial",
    summary="Answers",
    config=TrialConfig,
    inputs=("eval_data",),
    optional_inputs=("golden_eval",),
    by_uri=("exported_model",),
    outputs=("eval_results", "report"),
    results={"passed": bool, "eval_results_uri": str},
)


class Task:
    """A KFP task whose artifacts lie in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output_file = directory / "meta" / "executor_output.json"
        self.calls: list[tuple[TrialConfig, dict[str, Any]]] = []
        eval_data = directory / "eval_data"
        eval_data.mkdir()
        (eval_data / "queries.jsonl").write_text("{}")
        self.digest = seal(eval_data, "eval_data")
        self.artifacts = {"eval_data": self.artifact("eval_data", manifest_sha256=self.digest)}

    def artifact(self, name: str, **metadata: Any) -> dict[str, Any]:
        return {"name": f"tasks/7/{name}", "uri": str(self.directory / name), "metadata": metadata}

    def program(self, config: TrialConfig, **given: Any) -> dict[str, Any]:
        self.calls.append((config, given))
        given["eval_results"].mkdir()
        given["report"].write_text("<p>")
        return {"passed": True, "ndcg": 0.25, "count": 3, "lost": math.nan, "endless": math.inf, "note": "text"}

    def run(self, **parameters: Any) -> TrialConfig:
        outputs = {name: {"artifacts": [self.artifact(name)]} for name in (*TRIAL.outputs, "trial_metrics")}
        message = {
            "inputs": {
                "parameterValues": {"exported_model_uri": "s3://b/model", **parameters},
                "artifacts": {name: {"artifacts": [artifact]} for name, artifact in self.artifacts.items()},
            },
            "outputs": {"artifacts": outputs, "outputFile": str(self.output_file)},
        }
        # Through kfp's own message, as the launcher builds it: numbers become floats, unknown fields are refused.
        text = json_format.MessageToJson(json_format.ParseDict(message, messages.ExecutorInput()))
        run_from_executor_input(TRIAL, text)
        return self.calls[-1][0]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    task = Task(tmp_path)
    module = ModuleType("components.trial.program")
    module.run = task.program  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "components.trial", ModuleType("components.trial"))
    monkeypatch.setitem(sys.modules, "components.trial.program", module)
    figures = ArtifactType("trial_metrics", "Metrics", "Figures", is_file=True)
    monkeypatch.setitem(ARTIFACTS, "trial_metrics", figures)
    return task


@pytest.mark.parametrize("name", ["bucket/a/b", "bucket/with space/ü", "bucket"])
@pytest.mark.parametrize("scheme", ["gs", "s3", "minio"])
def test_uris_are_where_kfp_mounts_them(scheme: str, name: str) -> None:
    uri = f"{scheme}://{name}"
    assert (
        str(local_path({"uri": uri})) == dsl.Artifact(uri=uri).path == f"/{'gcs' if scheme == 'gs' else scheme}/{name}"
    )


def test_model_images_are_where_kfp_mounts_them() -> None:
    uri = "oci://registry.example/team/model:1"
    assert local_path({"uri": uri}) == Path(dsl.Model(uri=uri).path)


def test_a_custom_path_wins() -> None:
    theirs = dsl.Artifact(uri="s3://bucket/a")
    theirs.custom_path = "/data/a"
    assert str(local_path({"uri": "s3://bucket/a", "customPath": "/data/a"})) == theirs.path == "/data/a"


def test_plain_paths_are_taken_as_they_are() -> None:
    assert local_path({"uri": "/tmp/a"}) == Path("/tmp/a")


def test_answer_is_kfps_executor_output(task: Task) -> None:
    task.run()
    text = task.output_file.read_text()
    answer = json_format.Parse(text, messages.ExecutorOutput())
    assert json_format.MessageToDict(answer)["parameterValues"] == {
        "passed": True,
        "eval_results_uri": str(task.directory / "eval_results"),
    }
    assert set(answer.artifacts) == {"eval_results", "report", "trial_metrics"}
    for name, found in answer.artifacts.items():
        assert (found.artifacts[0].name, found.artifacts[0].uri) == (f"tasks/7/{name}", str(task.directory / name))
        assert found.artifacts[0].metadata["kind"] == name


def test_answer_holds_no_null_and_no_nan(task: Task) -> None:
    task.run()

    def values(node: Any) -> list[Any]:
        if isinstance(node, dict):
            return [v for child in node.values() for v in values(child)]
        return [v for child in node for v in values(child)] if isinstance(node, list) else [node]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = values(json.loads(task.output_file.read_text(), parse_constant=refuse))
    assert found
    assert None not in found


def test_figures_stand_in_the_metrics_artifact_as_numbers(task: Task) -> None:
    task.run()
    body = json.loads(task.output_file.read_text())
    metadata = body["artifacts"]["trial_metrics"]["artifacts"][0]["metadata"]
    assert metadata.pop("seconds") >= 0
    assert metadata == {"kind": "trial_metrics", "schema_version": 1, "passed": 1.0, "ndcg": 0.25, "count": 3.0}


def test_whole_numbers_arrive_as_floats_and_are_whole_again(task: Task) -> None:
    config = task.run(rounds=3.0, rate=2.0, cutoffs=[1.0, 5.0, 10.0])
    assert (config.rounds, config.rate, config.cutoffs) == (3, 2.0, [1, 5, 10])


def test_a_fraction_is_not_rounded_to_a_whole_number(task: Task) -> None:
    with pytest.raises(InputError, match=r"rounds = 2\.5"):
        task.run(rounds=2.5)


def test_parameters_that_are_no_settings_are_left_alone(task: Task) -> None:
    assert task.run(**{"pipelinechannel--x": "1", "trial_gpu_count": "1"}) == TrialConfig()


def test_settings_that_may_be_null_are_texts_in_the_form(task: Task) -> None:
    assert (task.run(limit="", place="").limit, task.run(limit="", place="").place) == (None, None)
    assert (task.run(limit="7", place="7").limit, task.run(limit="7", place="7").place) == (7, "7")
    assert task.run(overrides={"limit": None}).limit is None
    with pytest.raises(InputError, match="limit = 'many'"):
        task.run(limit="many")


def test_overrides_win_over_the_form_and_the_encoders(task: Task) -> None:
    config = task.run(rounds=2, encoder_overrides={"pooling": "cls", "rounds": 4}, overrides={"rounds": 5})
    assert (config.rounds, config.pooling) == (5, "cls")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"overrides": {"round": 5}}, "no setting 'round': did you mean 'rounds'"),
        ({"overrides": {"rounds": "many"}}, "rounds = 'many'"),
        ({"encoder_overrides": {"pooling": "max"}}, "pooling = 'max'"),
        ({"overrides": ["rounds"]}, "expected a dictionary of settings"),
        ({"rounds": 0}, "rounds = 0"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(task: Task, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task.run(**parameters)
    assert task.calls == []
    assert not task.output_file.exists()


def test_an_optional_input_is_passed_when_the_task_has_it(task: Task) -> None:
    task.run()
    assert task.calls[-1][1]["golden_eval"] is None
    (task.directory / "golden_eval").mkdir()
    task.artifacts["golden_eval"] = task.artifact("golden_eval")
    task.run()
    assert task.calls[-1][1]["golden_eval"] == task.directory / "golden_eval"


def test_a_partly_copied_artifact_of_a_stage_is_refused(task: Task) -> None:
    (task.directory / "eval_data" / "manifest.json").unlink()
    with pytest.raises(InputError, match="it is not complete"):
        task.run()
    assert task.calls == []


def test_artifacts_by_uri_are_not_looked_for_here(task: Task) -> None:
    task.run()
    assert task.calls[-1][1]["exported_model_uri"] == "s3://b/model"
