"""Reads the corpus in a directory."""

from __future__ import annotations

from pathlib import Path

from components.sdg.component import SdgConfig
from components.sdg.corpus import Corpus, read_corpus
from components.sdg.places import directory


def read_directory(root: Path, config: SdgConfig) -> Corpus:
    return read_corpus([directory(root, config)], config)
