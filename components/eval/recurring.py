"""What eval leaves in the history of recurring runs: the verdict, and a model that passed, with its test set."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from components.core.history import Judged, ThisRun
from components.eval.gate import Gate
from components.eval.metrics import Scores

_log = logging.getLogger(__name__)
_COMPARED = ("base", "champion", "finetuned")


def record(
    run: ThisRun, gate: Gate, scores: Mapping[str, Scores], queries: int, checkpoint: Path, eval_data: Path
) -> list[str]:
    """Write the verdict into the history of ``run``; return its last runs, newest first, a line for each.

    The model and its test set go first: a run with a verdict that passed has both.
    """
    history = run.history
    if gate.passed:
        history.keep(run.run, "checkpoint", checkpoint)
        history.keep(run.run, "eval_data", eval_data)
    means = {system: _mean(scores[system], gate.metric) for system in _COMPARED if system in scores}
    judged = Judged(passed=gate.passed, reasons=gate.reasons, metric=gate.metric, queries=queries, scores=means)
    history.write(run.run, judged)
    _log.info("run %s", history.run(run.run).summary())
    return history.lines()


def _mean(scores: Scores, metric: str) -> float:
    return round(next(family[metric] for family in scores.mean.values() if metric in family), 6)
