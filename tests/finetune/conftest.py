"""The base model of most tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.core.encoder.config import EncoderConfig
from tests.finetune.training import write_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny"), small_config)
