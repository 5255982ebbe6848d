"""A model that loads in no time."""

from __future__ import annotations

from typing import Any

import pytest

from components.core.encoder.config import EncoderConfig


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig, models: Any) -> EncoderConfig:
    """BERT with one layer of 32 dimensions and random weights; query and passage have prefixes."""
    return models.write_tiny_bert(tmp_path_factory.mktemp("tiny"), small_config)
