"""What export makes of a checkpoint, as the fixtures hand it to tests. Importing it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.export.component import ExportConfig


@dataclass(frozen=True)
class Exported:
    """A checkpoint and what export made of it."""

    config: ExportConfig
    checkpoint: Path
    eval_data: Path | None
    model: Path
    bundle: Path
    metrics: dict[str, Any]
