"""A BEIR folder as labelled records: its judged questions of every split, and all its passages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.core.errors import InputError
from components.core.retrieval.beir_data import read_beir
from components.prep.read.files import Found


def read(folder: Path) -> Iterator[Found]:
    """Passages, then questions with those that answer them. How BEIR split them is of no matter: prep splits anew."""
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not splits:
        raise InputError(f"{folder} has no qrels/*.tsv: a BEIR folder says which passages answer its questions")
    found = {split: read_beir(folder, split=split) for split in splits}
    first = found[splits[0]]
    for name, text in first.corpus.items():
        yield f"{folder.name}/{name}", {"id": name, "text": text, "document": first.documents[name]}
    answers: dict[str, dict[str, None]] = {}
    for split, data in found.items():
        if data.level == "document":
            raise InputError(f"{folder}/qrels/{split}.tsv judges documents: training needs the passages that answer")
        for query, judged in data.qrels.items():
            relevant = {name: None for name, score in judged.items() if score > 0}
            answers.setdefault(query, {}).update(relevant)
    texts = {query: text for data in found.values() for query, text in data.queries.items()}
    metadata = {query: about for data in found.values() for query, about in data.query_metadata.items()}
    for query, relevant in answers.items():
        about = {"source": folder.name, **metadata[query]}
        yield f"{folder.name}/{query}", {"query": texts[query], "positive_id": list(relevant), "metadata": about}
