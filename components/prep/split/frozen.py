"""A test set that stays as it is over recurring runs, and that training never sees."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from components.core.retrieval.beir_data import CORPUS_FILE, QRELS_FILE, QUERIES_FILE, read_beir


@dataclass(frozen=True)
class FrozenEval:
    """What training may not see: the queries, and the documents that answer them, by name and by their texts.

    ``answers`` are the passages that are judged relevant; ``passages`` all those of ``documents``.
    """

    queries: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()
    passages: frozenset[str] = frozenset()


def read_frozen_eval(directory: Path) -> FrozenEval:
    """Read the test set in ``directory``, a BEIR folder with a corpus. Raises InputError as ``read_beir`` does."""
    data = read_beir(directory)
    relevant = {name for judged in data.qrels.values() for name, score in judged.items() if score > 0}
    if data.level == "document":
        documents = set(relevant)
        answers = {text for name, text in data.corpus.items() if data.documents[name] in relevant}
    else:
        documents = {data.documents[name] for name in relevant}
        answers = {data.corpus[name] for name in relevant}
    # prep writes the document that a question was asked of; it may be another holder of the same passage.
    sources = {metadata.get("document") for metadata in data.query_metadata.values()}
    documents |= {name for name in sources if isinstance(name, str)}
    passages = {text for name, text in data.corpus.items() if data.documents[name] in documents}
    return FrozenEval(frozenset(data.queries.values()), frozenset(documents), frozenset(answers), frozenset(passages))


def copy_frozen_eval(source: Path, target: Path) -> None:
    """Copy the test set byte for byte, so that figures of one run and the next can be compared."""
    for name in (CORPUS_FILE, QUERIES_FILE, QRELS_FILE):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
