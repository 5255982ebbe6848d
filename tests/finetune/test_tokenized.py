"""What counts as the same passage, and as no negative, in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.core.encoder.checkpoint import load_base
from components.core.errors import InputError
from components.finetune.data.tokenized import TokenizedData
from components.finetune.data.training_data import read_training_data
from tests.finetune.training import finetune, settings, write_data

TEXTS = {
    "a1": "The valve opens at two bar.",
    "a2": "The valve closes at one bar.",
    "b1": "The pump runs on water.",
    "b1 again": "The pump runs on water.",
    "c1": "A filter is washed each week.",
    "none": "No document is known of this passage.",
}
DOCUMENTS = {"a1": "a", "a2": "a", "b1": "b", "b1 again": "b", "c1": "c", "none": None}


def example(question: str, positive: str, *negatives: str) -> dict[str, Any]:
    return {"question": question, "pos_doc": [{"id": positive}], "neg_doc": [{"id": name} for name in negatives]}


ROWS = [
    example("When does the valve open?", "a1", "c1", "b1"),
    example("When does it close?", "a2", "b1 again", "c1"),
    example("What runs on water?", "b1 again", "a1", "none"),
    example("What is washed?", "c1", "a2", "none"),
    example("Of which is nothing known?", "none", "a1", "c1"),
]


def data(directory: Path, documents: bool) -> Path:
    write_data(directory, ROWS, TEXTS)
    if documents:
        table = pa.table({"id": list(TEXTS), "text": list(TEXTS.values()), "document": list(DOCUMENTS.values())})
        pq.write_table(table, directory / "corpus" / "train.parquet")
    return directory


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_what_is_no_negative(tiny: Path, tmp_path: Path, documents: bool, mask: bool) -> None:
    config = settings(tiny, train_n_passages=3, in_batch_negatives=True, mask_same_document=mask)
    encoder = load_base(config.encoder())
    tokenized = TokenizedData(read_training_data(data(tmp_path / "data", documents), config.encoder()), encoder, config)
    batch = tokenized.batch(range(len(ROWS)))
    names = {
        tuple(ids): name for name, ids in zip(TEXTS, encoder.tokenize(list(TEXTS.values()), "passage"), strict=True)
    }
    found = [names[tuple(ids)] for ids in batch.passages]
    assert sorted(found) == ["a1", "a2", "b1 again", "c1", "none"]
    known = [sorted(found[row] for row in rows) for rows in batch.known]
    together = ["a1", "a2"] if documents and mask else None
    assert known == [together or ["a1"], together or ["a2"], ["b1 again"], ["c1"], ["none"]]
    assert [found[own[0]] for own in batch.slots] == ["a1", "a2", "b1 again", "c1", "none"]


def test_documents_change_the_identity_only_where_they_are_used(tiny: Path, tmp_path: Path) -> None:
    def digest(name: str, documents: bool, mask: bool) -> str:
        config = settings(tiny, train_n_passages=3, mask_same_document=mask)
        read = read_training_data(data(tmp_path / name, documents), config.encoder())
        return TokenizedData(read, load_base(config.encoder()), config).digest()

    assert digest("1", True, False) == digest("2", False, False) == digest("3", False, True) != digest("4", True, True)


def test_vectors_cannot_be_cut_to_what_they_do_not_have(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"have 16 numbers and cannot be cut to 16: give smaller ones"):
        finetune(tmp_path, data(tmp_path / "data", False), settings(tiny, matryoshka_dimensions=[8, 16]))
