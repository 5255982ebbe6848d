"""One process of a TrainJob: ``python -m components.finetune.node URI``, started by torchrun in each of its pods."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path

from components.core import log
from components.core.errors import StageError, Transient
from components.core.ranks import Ranks, join, leave
from components.core.store import open_store
from components.finetune.component import FinetuneConfig
from components.finetune.handover import ERROR, REQUEST, RESULT, receive, send, send_error


def main(uri: str) -> int:
    """Train on what lies at ``uri``, leave the result there; return the exit code."""
    log.configure("finetune")
    ranks = join()
    store = open_store(uri, setting="checkpoint_uri")
    try:
        with tempfile.TemporaryDirectory() as directory:
            _train(ranks, uri, Path(directory))
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        if ranks.first:
            send_error(store, error)
        return error.exit_code
    leave()
    return 0


def _train(ranks: Ranks, uri: str, work: Path) -> None:
    store = open_store(uri, setting="checkpoint_uri")
    if ranks.first:
        store.delete([ERROR])
    # One copy for each pod: its processes read the same directory.
    shared = Path(tempfile.gettempdir()) / "trainjob-input"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        about = receive(store, "input", REQUEST, shared)
        if about is None:
            raise Transient(
                f"{uri} holds no request: the finetune task writes it before it starts the job; run it again"
            )
        (shared / "settings.json").write_text(FinetuneConfig(**about["settings"]).model_dump_json(), encoding="utf-8")
    ranks.wait()
    config = FinetuneConfig.model_validate_json((shared / "settings.json").read_text(encoding="utf-8"))
    checkpoint, report = work / "checkpoint", work / "training_report"
    # Programs are reached by name, as the stages reach them.
    train = importlib.import_module("components.finetune.program").train
    figures = train(
        ranks, config, training_data=shared / "training_data", checkpoint=checkpoint, training_report=report
    )
    if ranks.first:
        send(store, "output", RESULT, {"checkpoint": checkpoint, "training_report": report}, {"figures": figures})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
