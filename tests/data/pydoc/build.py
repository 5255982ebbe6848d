"""Writes the demo's inputs: the corpus that this Python carries, and the golden questions about it.

Run as `python tests/data/pydoc/build.py --out DIR`: makes DIR/corpus and DIR/golden_eval.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name
from components.sdg.passages.chunking import chunk_text

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    write_corpus(out / "corpus")
    write_golden(out / "golden_eval")


def write_corpus(directory: Path) -> None:
    """One text file for each topic."""
    directory.mkdir(parents=True)
    for name, text in topics.items():
        (directory / f"{name}.txt").write_text(text, encoding="utf-8")


def write_golden(directory: Path) -> None:
    """The golden questions in BEIR format, judged by document; a topic that this Python lacks is reported."""
    (directory / "qrels").mkdir(parents=True)
    shutil.copy(HERE / "queries.jsonl", directory)
    _write_passages(directory / "corpus.jsonl")
    header, *rows = (HERE / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    known = [row.split("\t") for row in rows if row.split("\t")[1] in topics]
    if len(known) < len(rows):
        missing = sorted({row.split("\t")[1] for row in rows} - set(topics))
        print(f"this Python has no topic {', '.join(missing)}: {len(rows) - len(known)} labels left out")
    lines = [f"{query}\t{topic}\t{score}" for query, topic, score in known]
    (directory / "qrels" / "test.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def _write_passages(path: Path) -> None:
    """Every topic's passages, cut as the demo cuts them. Topics repeat each other: so do passages."""
    config = resolve_settings([by_name("sdg")], profile_name="small", values={})["sdg"]
    with path.open("w", encoding="utf-8") as out:
        for topic, text in sorted(topics.items()):
            for passage in chunk_text(text, sentences=config.sentences_per_chunk, max_words=config.chunk_max_words):
                name = f"{topic}-{passage.chunk_id}"
                record = {"_id": name, "title": "", "text": passage.text, "metadata": {"document": topic}}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
