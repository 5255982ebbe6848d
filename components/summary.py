"""The end of a local run, for a person: what was gained, what is served, how to ask it."""

from __future__ import annotations

from pathlib import Path

from components.plan import Plan


def summary(work: Path, plan: Plan) -> str:
    """A readable account of the artifacts that the run left in ``work``."""
    return f"done: {', '.join(stage.name for stage in plan.stages)} in {work}"
