"""python -m components.finetune.kubernetes.worker URI: one process of a TrainJob, started by torchrun in its pods."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from components.core import log
from components.core.distributed.launch import explain_failure
from components.core.distributed.process_group import ProcessGroup, destroy_process_group, init_process_group
from components.core.errors import StageError, Transient
from components.core.store import open_store
from components.core.store.errors import to_stage_error, translate_errors
from components.finetune.component import FinetuneConfig
from components.finetune.kubernetes.job_files import ERROR, REQUEST, RESULT, receive_files, send_error, send_files


def main(uri: str) -> int:
    """Train on what lies at ``uri``, write the result there; return the exit code."""
    log.configure("finetune")
    try:
        with tempfile.TemporaryDirectory() as directory:
            _train(init_process_group(), uri, Path(directory))
    except (Exception, KeyboardInterrupt) as error:
        problem, is_consequence = explain_failure(error)
        print(f"error: {problem}", file=sys.stderr)
        if not is_consequence:
            _report_error(uri, problem)
        return problem.exit_code
    destroy_process_group()
    return 0


def _report_error(uri: str, error: StageError) -> None:
    """Write the error to where the task that waits for the job reads it."""
    try:
        send_error(open_store(uri, setting="checkpoint_uri"), error)
    except Exception as failed:  # the error itself matters more, and its exit code
        print(f"error: {to_stage_error(failed, f'checkpoint_uri = {uri}')}", file=sys.stderr)


def _train(process_group: ProcessGroup, uri: str, work: Path) -> None:
    store, where = open_store(uri, setting="checkpoint_uri"), f"checkpoint_uri = {uri}"
    if process_group.is_main:
        with translate_errors(where):
            store.delete([ERROR])
    # One copy for each pod: its processes read the same directory.
    shared = Path(tempfile.gettempdir()) / "trainjob-input"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        shutil.rmtree(shared, ignore_errors=True)
        with translate_errors(where):
            about = receive_files(store, "input", REQUEST, shared)
        if about is None:
            raise Transient(
                f"{uri} holds no request: the finetune task writes it before it starts the job; run it again"
            )
        (shared / "settings.json").write_text(FinetuneConfig(**about["settings"]).model_dump_json(), encoding="utf-8")
    process_group.barrier()
    config = FinetuneConfig.model_validate_json((shared / "settings.json").read_text(encoding="utf-8"))
    checkpoint, report = work / "checkpoint", work / "training_report"
    # Programs are reached by name, as the stages reach them.
    train = importlib.import_module("components.finetune.program").train
    figures = train(
        process_group, config, training_data=shared / "training_data", checkpoint=checkpoint, training_report=report
    )
    if process_group.is_main:
        with translate_errors(where):
            artifacts = {"checkpoint": checkpoint, "training_report": report}
            send_files(store, "output", RESULT, artifacts, {"figures": figures})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
