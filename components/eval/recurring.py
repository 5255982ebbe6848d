"""What eval leaves in the history of recurring runs: the verdict, and a model that passed, with its test set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from components.core.history import RunContext, Verdict
from components.eval.gate import Gate
from components.eval.metrics import Scores

_log = logging.getLogger(__name__)
_COMPARED = ("base", "champion", "finetuned")


def record(
    run: RunContext, gate: Gate, scores: Mapping[str, Scores], queries: int, checkpoint: Path, eval_data: Path
) -> list[str]:
    """Write the verdict into the history of ``run``; return its last runs, newest first, a line for each.

    The model and its test set go first: a run with a verdict that passed has both.
    """
    history = run.history
    if gate.passed:
        history.store_artifact(run.name, "checkpoint", checkpoint)
        history.store_artifact(run.name, "eval_data", eval_data)
    means = {system: _mean(scores[system], gate.metric) for system in _COMPARED if system in scores}
    judged = Verdict(passed=gate.passed, reasons=gate.reasons, metric=gate.metric, queries=queries, scores=means)
    history.write(run.name, judged)
    _log.info("run %s", history.read_run(run.name).summary())
    return history.summarize_last_runs()


def _mean(scores: Scores, metric: str) -> float:
    return round(next(family[metric] for family in scores.mean.values() if metric in family), 6)
