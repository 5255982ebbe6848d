"""Training on several nodes: a TrainJob of Kubeflow Trainer, watched to its end."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.store import Store, open_store
from components.core.store.errors import translate_errors
from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes.job_files import REQUEST, RESULT, receive_error, receive_files, send_files
from components.finetune.kubernetes.trainjob_api import TrainJobs
from components.finetune.kubernetes.trainjob_manifest import compute_job_name, render_trainjob

_log = logging.getLogger(__name__)
POLL_SECONDS = 10.0
# A registry may fail for this long before a pod that cannot pull its image counts as stuck.
_PATIENCE_SECONDS = 300.0


def run(config: FinetuneConfig, *, training_data: Path, checkpoint: Path, training_report: Path) -> dict[str, Any]:
    """Train in a TrainJob; write ``checkpoint`` and ``training_report``, return the figures.

    A job of the same name is taken over, a failed one replaced, a finished one's result used again. Raises what the
    training raised; ActionNeeded for missing rights and pods that cannot start, Transient when the job was lost.
    """
    if not config.checkpoint_uri or "://" not in config.checkpoint_uri:
        raise InputError(
            "trainer = trainjob needs checkpoint_uri = s3://... or gs://...: its nodes get the data from there"
        )
    name = compute_job_name(config, training_data)
    uri = f"{config.checkpoint_uri.rstrip('/')}/jobs/{name}"
    store, where = open_store(uri, setting="checkpoint_uri"), f"checkpoint_uri = {config.checkpoint_uri}"
    jobs = TrainJobs(config.trainjob_namespace)
    with translate_errors(where):
        is_done = _has_result(store)
    if not is_done:
        # In the job every process is started by torchrun.
        job_config = config.model_copy(update={"trainer": "here"}).model_dump(mode="json")
        with translate_errors(where):
            send_files(store, "input", REQUEST, {"training_data": training_data}, {"settings": job_config})
        jobs.ensure(render_trainjob(name, config, uri, jobs.read_pod_settings(config)))
        _watch(jobs, name, store)
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as temporary:
        received = Path(temporary)
        with translate_errors(where):
            about = receive_files(store, "output", RESULT, received)
        if about is None:
            raise StageError(f"TrainJob {name} is complete and left no result at {uri}: look at its pods' logs")
        (received / "checkpoint").rename(checkpoint)
        shutil.move(received / "training_report", training_report)
    jobs.delete(name)
    figures: dict[str, Any] = about["figures"]
    return figures


def _has_result(store: Store) -> bool:
    try:
        store.read(RESULT)
    except FileNotFoundError:
        return False
    return True


def _watch(jobs: TrainJobs, name: str, store: Store) -> None:
    """Wait until the job is complete; raise what stopped it."""
    logged, stuck_since = "", None
    while True:
        state = jobs.read_state(name)
        if state.phase == "Complete":
            return
        if state.phase == "Failed":
            with translate_errors(f"TrainJob {name} failed ({state.reason}), and what stopped it cannot be read"):
                error = receive_error(store)
            error = error or Transient(f"TrainJob {name} failed ({state.reason}; {jobs.diagnose(name)}): run again")
            jobs.delete(name)
            raise error
        news = jobs.diagnose(name) or jobs.read_last_log_line(name)
        if news and news != logged:
            _log.info("TrainJob %s: %s", name, news)
            logged = news
        stuck_since = (stuck_since or time.monotonic()) if jobs.is_stuck(name) else None
        if stuck_since and time.monotonic() - stuck_since > _PATIENCE_SECONDS:
            raise ActionNeeded(f"TrainJob {name} cannot start: {jobs.diagnose(name)}")
        time.sleep(POLL_SECONDS)
