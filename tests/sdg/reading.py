"""Reads the corpus in a directory."""

from __future__ import annotations

from pathlib import Path

from components.sdg.component import SdgConfig
from components.sdg.read.corpus import Corpus, read_corpus
from components.sdg.read.sources import list_directory


def read_directory(root: Path, config: SdgConfig) -> Corpus:
    return read_corpus([list_directory(root, config)], config)
