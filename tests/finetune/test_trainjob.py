"""Training in a TrainJob, against a stand-in of the Kubernetes API; torchrun and the training in it are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.distributed.process_group import ProcessGroup
from components.core.errors import ActionNeeded, InputError, Transient
from components.core.store import open_store
from components.deploy.local.process import find_free_port
from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes import trainjob, worker
from components.finetune.kubernetes.job_files import receive_error
from components.finetune.kubernetes.trainjob_api import TrainJobs
from components.finetune.kubernetes.trainjob_manifest import PodSettings, compute_job_name, render_trainjob
from tests.deploy.cluster.server import StandInCluster, running, write_kubeconfig
from tests.deploy.cluster.store import GROUPS
from tests.deploy.pod_security import violations
from tests.finetune.training import finetune, log, records, settings, texts, write_data
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

EXAMPLES = 7
ROLE = Path(__file__).parents[2] / "manifests" / "trainjob" / "role.yaml"


class StandInTrainer:
    """What Kubeflow Trainer does with a TrainJob: runs its command with the variables of the torch runtime."""

    def __init__(self, cluster: StandInCluster) -> None:
        self.cluster = cluster
        self.started = 0
        self.reason: str | None = None
        """Why the job's pod waits instead of running."""
        self._over = threading.Event()

    def __enter__(self) -> StandInTrainer:
        self._thread = threading.Thread(target=self._reconcile, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _reconcile(self) -> None:
        while not self._over.wait(0.05):
            store = self.cluster.store
            with store.lock:
                new = [
                    name
                    for kind, name in store.objects
                    if kind == "trainjobs" and ("pods", f"{name}-node-0-0-x") not in store.objects
                ]
                new = [name for name in new if "status" not in store.objects["trainjobs", name]]
            for name in new:
                self._run(name)

    def _run(self, name: str) -> None:
        store = self.cluster.store
        with store.lock:
            spec = store.objects["trainjobs", name]["spec"]["trainer"]
            waiting = (
                {"waiting": {"reason": self.reason, "message": "no such image"}} if self.reason else {"running": {}}
            )
            status = {"phase": "Pending" if self.reason else "Running", "containerStatuses": [_container(waiting)]}
            labels = {"jobset.sigs.k8s.io/jobset-name": name}
            pod = {
                "metadata": {"name": f"{name}-node-0-0-x", "labels": labels},
                "spec": {"containers": []},
                "status": status,
            }
            store.objects["pods", f"{name}-node-0-0-x"] = pod
        if self.reason:
            return
        self.started += 1
        told = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": str(spec["numProcPerNode"]), "PET_NODE_RANK": "0"}
        told |= {
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(find_free_port("127.0.0.1")),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        command = [sys.executable, *spec["command"][1:], *spec["args"]]
        done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, check=False)
        kind = "Failed" if done.returncode else "Complete"
        condition = {
            "type": kind,
            "status": "True",
            "reason": "JobsEnded",
            "message": done.stderr[-300:] if done.returncode else "",
        }
        with store.lock:
            if ("trainjobs", name) in store.objects:
                store.set_status("trainjobs", name, {"conditions": [condition]})
            del store.objects["pods", f"{name}-node-0-0-x"]


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "node", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInCluster]:
    monkeypatch.setitem(GROUPS, "trainjobs", "trainer.kubeflow.org")
    found = StandInCluster(lambda _: None)  # type: ignore[arg-type]
    (role,) = [item for item in yaml.safe_load_all(ROLE.read_text(encoding="utf-8")) if item["kind"] == "Role"]
    found.rules = role["rules"]
    with running(found):
        write_kubeconfig(tmp_path / "kubeconfig", found)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.1)
        yield found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", records(EXAMPLES), texts(EXAMPLES))


def in_job(tiny: Path, tmp_path: Path, **given: Any) -> FinetuneConfig:
    shared = {"trainer": "trainjob", "num_nodes": 1, "gpus_per_node": 2, "trainjob_image": "registry/gpu:1"}
    return settings(
        tiny, num_epochs=2, global_batch_size=4, checkpoint_uri=f"file://{tmp_path}/bucket", **shared | given
    )


def test_a_trainjob_trains_as_this_machine_does(
    tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster
) -> None:
    config = in_job(tiny, tmp_path)
    with StandInTrainer(cluster) as trainer:
        outcome = finetune(tmp_path / "job", data, config)
        again = finetune(tmp_path / "again", data, config)
    finetune(tmp_path / "here", data, settings(tiny, num_epochs=2, global_batch_size=4))
    expected = [step["loss"] for step in log(tmp_path / "here")]
    assert [step["loss"] for step in log(tmp_path / "job")] == pytest.approx(expected, rel=1e-4)
    assert outcome.metrics["steps"] == again.metrics["steps"] == 4
    assert trainer.started == 1, "a retry after the end uses the result that is there"
    assert not any(kind == "trainjobs" for kind, _ in cluster.store.objects)
    assert ("create", "trainer.kubeflow.org", "trainjobs") in cluster.requests


def test_what_stops_the_training_stops_the_task(
    tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster
) -> None:
    config = in_job(tiny, tmp_path, learning_rate=1e30, lr_warmup_steps=0)
    with StandInTrainer(cluster), pytest.raises(ActionNeeded, match="training diverged and nothing was saved"):
        finetune(tmp_path / "job", data, config)
    assert not (tmp_path / "job" / "checkpoint").exists()


def test_a_retry_watches_the_job_that_runs(
    tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster, caplog: Any
) -> None:
    """And one that somebody deletes is a reason to try again."""
    caplog.set_level("INFO", "components")
    config = in_job(tiny, tmp_path)
    name = compute_job_name(config, data)
    job = render_trainjob(name, config, f"{config.checkpoint_uri}/jobs/{name}", PodSettings("registry/gpu:1"))
    with cluster.store.lock:
        uid = cluster.store.create("trainjobs", job)["metadata"]["uid"]

    def vanish() -> None:
        wait_for(lambda: "is there already" in caplog.text)
        assert cluster.store.get("trainjobs", name)["metadata"]["uid"] == uid
        with cluster.store.lock:
            cluster.store.delete("trainjobs", name)

    threading.Thread(target=vanish, daemon=True).start()
    with pytest.raises(Transient, match="is gone"):
        finetune(tmp_path / "job", data, config)
    assert "is there already" in caplog.text


def test_pods_that_cannot_start_are_named(
    tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster, monkeypatch: Any
) -> None:
    monkeypatch.setattr(trainjob, "_PATIENCE_SECONDS", 0.3)
    with (
        StandInTrainer(cluster) as trainer,
        pytest.raises(ActionNeeded, match="node-0-0-x: ImagePullBackOff: no such image"),
    ):
        trainer.reason = "ImagePullBackOff"
        finetune(tmp_path / "job", data, in_job(tiny, tmp_path))


def test_missing_rights_and_a_missing_trainer_are_told_apart(
    tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster
) -> None:
    rules, cluster.rules = cluster.rules, []
    with pytest.raises(ActionNeeded, match="finetune may not get TrainJob"):
        finetune(tmp_path / "job", data, in_job(tiny, tmp_path))
    cluster.rules = rules
    cluster.store.installed.discard("trainjobs")
    with pytest.raises(InputError, match="install Kubeflow Trainer"):
        finetune(tmp_path / "job", data, in_job(tiny, tmp_path))


def test_a_bucket_is_needed(tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster) -> None:
    with pytest.raises(InputError, match="trainer = trainjob needs checkpoint_uri"):
        finetune(tmp_path / "job", data, in_job(tiny, tmp_path).model_copy(update={"checkpoint_uri": None}))


def test_a_place_that_cannot_be_used_is_named(tiny: Path, data: Path, tmp_path: Path, cluster: StandInCluster) -> None:
    config = in_job(tiny, tmp_path).model_copy(update={"checkpoint_uri": "file:///dev/null/bucket"})
    with pytest.raises(ActionNeeded, match=r"checkpoint_uri = file:///dev/null/bucket: .*Not a directory"):
        finetune(tmp_path / "job", data, config)


@pytest.mark.parametrize(
    ("failure", "code", "word"),
    [
        (InputError("data[3] has no question"), 2, "data.3. has no question"),
        (KeyError("no such name"), 1, "this is a bug"),
        (RuntimeError("Connection closed by peer"), 75, None),
    ],
)
def test_any_process_of_a_job_leaves_word_of_its_own_fault(
    failure: Exception, code: int, word: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of another's: that would hide what the other said."""

    def fails(*_: object) -> None:
        raise failure

    monkeypatch.setattr(worker, "init_process_group", lambda: ProcessGroup(1, 2))
    monkeypatch.setattr(worker, "_train", fails)
    assert worker.main(str(tmp_path)) == code
    left = receive_error(open_store(str(tmp_path), setting="checkpoint_uri"))
    if word is None:
        assert left is None
    else:
        assert left is not None and left.exit_code == code
        assert re.search(word, str(left))


@pytest.mark.parametrize("status", [400, 404], ids=["starts again", "gone"])
def test_a_pod_without_a_log_says_nothing(status: int, cluster: StandInCluster) -> None:
    pod = {"metadata": {"name": "job-node-0-0-x", "labels": {"jobset.sigs.k8s.io/jobset-name": "job"}}}
    cluster.store.objects["pods", "job-node-0-0-x"] = pod | {
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    }
    cluster.fault = lambda _, path: (status, "no log") if path.endswith("/log") else None
    assert TrainJobs(None).read_last_log_line("job") == ""


def test_the_job_is_what_was_asked_for(tiny: Path, data: Path) -> None:
    config = settings(tiny, trainer="trainjob", num_nodes=3, gpus_per_node=8, checkpoint_uri="s3://bucket/states")
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface-token", "key": "HF_TOKEN"}}}
    pod_settings = PodSettings("registry/gpu:1", "default-editor", {"gpu": "H100"}, [{"operator": "Exists"}], [secret])
    job = render_trainjob("finetune-abc", config, "s3://bucket/states/jobs/finetune-abc", pod_settings)
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "8"}
    assert trainer["args"][-1] == "s3://bucket/states/jobs/finetune-abc" and trainer["env"] == [secret]
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "H100"} and pod["serviceAccountName"] == "default-editor"
    name = compute_job_name(config, data)
    assert name == compute_job_name(config, data) != compute_job_name(config.model_copy(update={"seed": 7}), data)


def test_namespaces_with_the_restricted_pod_standard_take_the_pods(tiny: Path) -> None:
    """What the job patches, upon a pod as the torch runtime of Kubeflow Trainer leaves it: nothing about security."""
    config = settings(tiny, trainer="trainjob", checkpoint_uri="s3://bucket/states")
    job = render_trainjob("finetune-abc", config, "s3://bucket/states/jobs/finetune-abc", PodSettings("registry/gpu:1"))
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert [container["name"] for container in pod["containers"]] == ["node"], "the runtime's only container"
    assert violations(pod) == []
    assert violations({**pod, "securityContext": {}}) != []
