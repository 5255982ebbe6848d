"""A small collection on which MiniLM is neither perfect nor lost, and two checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from components.core.encoder.config import EncoderConfig

Records = Iterable[dict[str, Any]]
WriteBeir = Callable[[Path, Records | None, Records, Iterable[tuple[str, str, int]]], Path]


@pytest.fixture(scope="session")
def write_beir() -> WriteBeir:
    def write(directory: Path, corpus: Any, queries: Any, qrels: Any) -> Path:
        (directory / "qrels").mkdir(parents=True)
        for name, records in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            if records is not None:
                text = "".join(json.dumps(record) + "\n" for record in records)
                (directory / name).write_text(text, encoding="utf-8")
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
        (directory / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return directory

    return write


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory, write_beir: WriteBeir) -> Path:
    """40 passages of 10 Python reference topics; queries are words of their passage, every third has two answers."""
    passages = []
    for topic in sorted(topics)[:60]:
        paragraphs = [" ".join(text.split()[:40]) for text in re.split(r"\n\s*\n", topics[topic])]
        long = [text for text in paragraphs if len(text.split()) == 40][:4]
        if len(long) == 4 and len(passages) < 40:
            passages += [(f"{topic}#{n}", topic, text) for n, text in enumerate(long)]
    corpus = [
        {"_id": name, "title": topic, "text": text, "metadata": {"document": topic}} for name, topic, text in passages
    ]
    queries = [{"_id": f"q{n}", "text": " ".join(text.split()[5::9])} for n, (_, _, text) in enumerate(passages[:30])]
    qrels = [(f"q{n}", passages[n][0], 1) for n in range(30)]
    qrels += [(f"q{n}", passages[n + 1][0], 1) for n in range(0, 30, 3)]
    return write_beir(tmp_path_factory.mktemp("collection") / "eval_data", corpus, queries, qrels)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig, models: Any) -> dict[str, Path]:
    """MiniLM as it is, and as bad training would leave it: with noise on its weights."""
    return models.write_base_and_noisy(tmp_path_factory.mktemp("checkpoints"), small_config)
