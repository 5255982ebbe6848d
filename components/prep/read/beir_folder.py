"""A BEIR folder as labelled records: its judged questions of every split, and all its passages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.core.errors import InputError
from components.core.retrieval.beir_data import read_beir
from components.prep.read.files import LocatedRecord


def read(folder: Path) -> Iterator[LocatedRecord]:
    """Yield passages, then questions with the passages that answer them.

    The splits of the folder are merged, because prep makes its own. Raises InputError without judgements, and for
    judgements of documents.
    """
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not splits:
        raise InputError(f"{folder} has no qrels/*.tsv: a BEIR folder says which passages answer its questions")
    data_by_split = {split: read_beir(folder, split=split) for split in splits}
    first = data_by_split[splits[0]]
    for name, text in first.corpus.items():
        yield f"{folder.name}/{name}", {"id": name, "text": text, "document": first.documents[name]}
    answers: dict[str, dict[str, None]] = {}
    for split, data in data_by_split.items():
        if data.level == "document":
            raise InputError(f"{folder}/qrels/{split}.tsv judges documents: training needs the passages that answer")
        for query, judged in data.qrels.items():
            relevant = {name: None for name, score in judged.items() if score > 0}
            answers.setdefault(query, {}).update(relevant)
    texts = {query: text for data in data_by_split.values() for query, text in data.queries.items()}
    metadata = {query: about for data in data_by_split.values() for query, about in data.query_metadata.items()}
    for query, relevant in answers.items():
        about = {"source": folder.name, **metadata[query]}
        yield f"{folder.name}/{query}", {"query": texts[query], "positive_id": list(relevant), "metadata": about}
