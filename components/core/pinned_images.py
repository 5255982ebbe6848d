"""Names of container images, read from images/pins.env, the one place that has them.

Needs nothing but Python: images/build.py runs before any package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# A link to images/pins.env, so that an installed package has it as well.
PINS = Path(__file__).with_name("pins.env")


def read_pins(path: Path = PINS, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the pinned names by variable (``CPU_IMAGE``, ``BASE``, ...).

    Args:
        path: File of NAME=VALUE lines.
        environment: Variables that replace those of the file; none by default.
    """
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=")[::2] for line in lines if line and not line.startswith("#"))
    return {name: (environment or {}).get(name, value) for name, value in pairs}


def stage_images(pins: Mapping[str, str]) -> dict[str, str]:
    """Return the images of the stages by kind (``cpu``, ``gpu``, ...): the variables that end in ``_IMAGE``."""
    return {name.removesuffix("_IMAGE").lower(): image for name, image in pins.items() if name.endswith("_IMAGE")}
