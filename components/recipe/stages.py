"""The six stages in running order."""

from __future__ import annotations

from components.core.errors import InputError
from components.core.stage import Stage
from components.deploy.component import STAGE as DEPLOY
from components.eval.component import STAGE as EVAL
from components.export.component import STAGE as EXPORT
from components.finetune.component import STAGE as FINETUNE
from components.prep.component import STAGE as PREP
from components.sdg.component import STAGE as SDG

STAGES: tuple[Stage, ...] = (SDG, PREP, FINETUNE, EVAL, EXPORT, DEPLOY)
NAMES: tuple[str, ...] = tuple(stage.name for stage in STAGES)


def by_name(name: str) -> Stage:
    """The stage called ``name``. Raises InputError when there is none."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise InputError(f"there is no stage '{name}': the stages are {', '.join(NAMES)}")
