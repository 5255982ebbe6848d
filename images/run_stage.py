"""Runs one stage in its image, confined as a cluster confines it; `make stage` calls it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from components.recipe.stages import STAGES
from images.engine import ROOT, add_options, call_engine, run_command, tag

# The user of the images, and of stages that root starts.
USER = 10001
# What a pod of a cluster that enforces the restricted Pod Security Standard may do, and a read-only root besides.
CONFINED = (
    "--read-only", "--tmpfs", "/tmp:rw,exec,size=4g", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input, else the engine's own."""
    parser = argparse.ArgumentParser(prog="images/run_stage.py", description=__doc__)
    add_options(parser)
    parser.add_argument("stage")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "stage", help="mounted at /work")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return run_command(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    images = {stage.name: stage.image for stage in STAGES}
    if args.stage not in images:
        raise ValueError(f"there is no stage '{args.stage}'")
    options = [*CONFINED, "--user", f"{_choose_user(args.work)}:0", "--volume", f"{args.work.resolve()}:/work"]
    options += os.environ.get("STAGE_OPTIONS", "").split()
    command = [args.stage, "--work", "/work", *args.arguments]
    call_engine(args.engine, "run", "--rm", *options, tag(args.registry, images[args.stage]), *command)


def _choose_user(work: Path) -> int:
    """Return the user of the stage: the caller, but never root. A missing ``work`` is created for that user."""
    if uid := os.getuid():
        work.mkdir(parents=True, exist_ok=True)
        return uid
    if not work.exists():
        work.mkdir(parents=True)
        os.chown(work, USER, 0)
    if not (owner := work.stat().st_uid):
        raise ValueError(f"{work} is root's, and a stage does not run as root: chown -R {USER} {work}")
    return owner


if __name__ == "__main__":
    sys.exit(main())
