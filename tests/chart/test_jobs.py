"""The chart's Jobs do what they say: their own command against a stand-in of KFP's API, with files as in the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import __version__
from tests.chart.rendering import Object, objects, one
from tests.images.dockerfile import copies
from tests.pipeline.kfp_api import KfpApi, serving

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "corpus_uri": "s3://bucket/documents",
    "champion_uri": "s3://bucket/checkpoint",
    "num_epochs": 2,
    "learning_rate": 0.00001,
    "finetune_node_selector": {},
    "finetune_overrides": {"seed": 1000000, "weight_decay": 0.000001},
}


@pytest.fixture
def server() -> Iterator[KfpApi]:
    with serving() as state:
        yield state


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What the target cpu of images/Dockerfile holds besides the packages."""
    assert "\nkfp==" in (ROOT / "images" / "cpu" / "requirements.txt").read_text()
    for source, target in copies("cpu"):
        if source != "components":  # which PYTHONPATH brings
            (tmp_path / target[1:]).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / target[1:])
    return tmp_path


def start(job: Object, image: Path) -> subprocess.CompletedProcess[str]:
    """Run the container of ``job``; its files lie under ``image`` instead of the root."""
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    token = environment["KF_PIPELINES_SA_TOKEN_PATH"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "token"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "token"]
    assert token == f"{mount['mountPath']}/{volume['projected']['sources'][0]['serviceAccountToken']['path']}"
    (image / "token").write_text("canary-token\n")
    environment |= {"KF_PIPELINES_SA_TOKEN_PATH": str(image / "token"), "HOME": str(image), "PYTHONPATH": str(ROOT)}
    program = [str(image / part[1:]) if part.startswith("/") else part for part in container["command"][1:]]
    return subprocess.run(
        [sys.executable, *program, *container["args"]],
        cwd=image,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def job(server: KfpApi, kind: str, **pipelines: Any) -> Object:
    images = {"gpu": "registry.internal:5000/gpu:7"}
    return one(objects({"images": images, "pipelines": {"host": server.url, **pipelines}}), "Job", kind)


def schedule(server: KfpApi, **changes: Any) -> Object:
    wanted = {"name": "nightly", "cron": "0 2 * * *", "with": ["champion"], "parameters": PARAMETERS} | changes
    return job(server, "nemotron-embed-schedule-nightly", schedules=[wanted], nodeLabels="gke")


@pytest.mark.slow
def test_a_schedule_is_made_once_and_changed_with_its_values(server: KfpApi, image: Path) -> None:
    for text in ("scheduled (0 0 2 * * *)", "is scheduled so already"):
        done = start(schedule(server), image)
        assert (done.returncode, text in done.stdout) == (0, True), done.stderr
    (run,) = server.recurring
    assert run.runtime_config.parameters == PARAMETERS
    assert (run.display_name, run.service_account) == ("nightly", "nemotron-embed-runner")
    assert [one.namespace for one in server.pipelines + server.experiments] == ["team-a", "team-a"]
    assert [version.display_name for version in server.versions] == [__version__]
    assert b"registry.internal:5000/gpu:7" in server.uploaded[0]
    assert b"cloud.google.com/gke-accelerator" in server.uploaded[0]
    assert {headers["authorization"] for _, _, headers in server.requests} == {"Bearer canary-token"}
    assert start(schedule(server, cron="30 4 * * 1"), image).returncode == 0
    assert [run.trigger.cron_schedule.cron for run in server.recurring] == ["0 30 4 * * 1"]


@pytest.mark.slow
def test_an_upload_can_be_repeated(server: KfpApi, image: Path) -> None:
    for text in ("uploaded", "is there already"):
        done = start(job(server, "nemotron-embed-upload-deploy", upload=["deploy"]), image)
        assert (done.returncode, text in done.stdout) == (0, True), done.stderr
    assert [pipeline.display_name for pipeline in server.pipelines] == ["nemotron-embed-from-deploy"]
    assert len(server.versions) == 1


def test_wrong_parameters_end_the_job_at_once(server: KfpApi, image: Path) -> None:
    """Those that only the stage's own model can refuse; the rest is the schema's."""
    wrong = schedule(server, parameters=PARAMETERS | {"prep_overrides": {"train_ratio": 0.5}})
    done = start(wrong, image)
    assert "prep: train_ratio + val_ratio + test_ratio must be 1" in done.stderr
    assert server.requests == []
    (rule,) = wrong["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], done.returncode in rule["onExitCodes"]["values"]) == ("FailJob", True)


def test_a_server_without_profiles_is_asked_for_no_namespace(server: KfpApi) -> None:
    found = job(server, "nemotron-embed-upload-sdg", upload=["sdg"], multiUser=False, set={"num_epochs": 2})
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert "--namespace" not in container["args"]
    assert yaml.safe_load(container["args"][container["args"].index("--set") + 1].partition("=")[2]) == 2
