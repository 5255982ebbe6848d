"""Training data as token ids, and the batches made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.data.training_data import Example, TrainingData


class TokenizedData:
    """``data`` with ``train_n_passages`` passages per query, every text tokenised once.

    Passages that are equal to the encoder, whatever their ids, are one passage here.
    """

    def __init__(self, data: TrainingData, encoder: Encoder, config: FinetuneConfig) -> None:
        self.data, self._negatives = data, config.train_n_passages - 1
        self._documents = data.documents if config.mask_same_document else {}
        queries = list(data.answers)
        names = list(dict.fromkeys(name for example in data.examples for name in self._passages_of(example)))
        self._queries = dict(zip(queries, encoder.tokenize(queries, "query"), strict=True))
        texts = [data.passages[name] for name in names]
        self._passages = dict(zip(names, encoder.tokenize(texts, "passage"), strict=True))
        first: dict[tuple[int, ...], str] = {}
        self._same = {name: first.setdefault(tuple(ids), name) for name, ids in self._passages.items()}

    @property
    def lengths(self) -> list[int]:
        """Tokens of every text."""
        return [len(ids) for texts in (self._queries, self._passages) for ids in texts.values()]

    def batch(self, rows: Sequence[int]) -> Batch:
        """The examples ``rows``; equal passages stand in the batch once."""
        examples = [self.data.examples[row] for row in rows]
        slots = [[self._same[name] for name in self._passages_of(example)] for example in examples]
        row = {name: number for number, name in enumerate(dict.fromkeys(name for names in slots for name in names))}
        of_document: dict[str | None, set[int]] = {}
        for name in {name for example in examples for name in self._passages_of(example)}:
            if name in self._documents:
                of_document.setdefault(self._documents[name], set()).add(row[self._same[name]])
        return Batch(
            queries=[self._queries[example.query] for example in examples],
            passages=[self._passages[name] for name in row],
            slots=[[row[name] for name in names] for names in slots],
            known=[
                {row[name] for name in map(self._same.get, self.data.answers[example.query]) if name in row}
                | of_document.get(self._documents.get(example.positive), set())
                for example in examples
            ],
        )

    def digest(self) -> str:
        """sha256 (hex) of all that training sees: examples in their order, known answers, token ids."""
        sha256 = hashlib.sha256()
        for example in self.data.examples:
            parts = [example.query, *self._passages_of(example)]
            documents = [self._documents.get(name) for name in parts[1:]]
            sha256.update(json.dumps([*parts, documents, sorted(self.data.answers[example.query])]).encode())
        for texts in (self._queries, self._passages):
            for name, ids in texts.items():
                sha256.update(json.dumps([name, len(ids)]).encode())
                sha256.update(np.asarray(ids, dtype="<i8").tobytes())
        return sha256.hexdigest()

    def _passages_of(self, example: Example) -> list[str]:
        """The positive and the hardest negatives; too few are repeated, as the recipe does."""
        repeated = example.negatives * -(-self._negatives // len(example.negatives))
        return [example.positive, *repeated[: self._negatives]]
