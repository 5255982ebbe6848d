"""One line per fact on stderr; in a pod the same lines, never a bar."""

from __future__ import annotations

import logging
import sys

TIME = "%H:%M:%S"


def configure(stage: str, *, verbose: bool = False) -> logging.Logger:
    """The logger of ``stage``, written to stderr with the time and the stage's name before each line."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.WARNING,
        format=f"%(asctime)s {stage}: %(message)s",
        datefmt=TIME,
        force=True,
    )
    logger = logging.getLogger("components")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    return logger
