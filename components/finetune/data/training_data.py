"""Training data as examples of token ids, and the order in which they are seen."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.encoder.config import ENCODER_FILE, EncoderConfig, read_encoder
from components.core.errors import InputError

TRAINING_FILE = "train_mined.automodel_unrolled.json"
_DOCUMENT = "document"
_SCALED_BATCH = 128
_SMALL_DATA = 2000


@dataclass(frozen=True)
class Example:
    """A query with the ids of one positive and of its negatives, hardest first."""

    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class TrainingData:
    """Examples, the text of every passage by id, and all positives of each query text.

    ``documents``: the document of each passage, where the data says it.
    """

    examples: list[Example]
    passages: dict[str, str]
    answers: dict[str, set[str]]
    documents: dict[str, str] = field(default_factory=dict)


def read_training_data(directory: Path, encoder: EncoderConfig) -> TrainingData:
    """Training data that prep made, or a user's own in Automodel's format.

    Raises InputError for what is no training data, and when it was mined with other encoder settings than ``encoder``.
    """
    if (directory / ENCODER_FILE).is_file():
        _check_encoder(read_encoder(directory), encoder)
    path = directory / TRAINING_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} has no {TRAINING_FILE}: give training data in Automodel's format") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): write it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise InputError(f'{path}: expected {{"corpus": {{"path": ...}}, "data": [...]}}')
    if not content["data"]:
        raise InputError(f"{path} holds no examples: there is nothing to train on")
    passages, documents = _passages(directory, content)
    examples = [_example(record, number, path, passages) for number, record in enumerate(content["data"])]
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.query, set()).add(example.positive)
    return TrainingData(examples, passages, answers, documents)


def batch_size(global_batch_size: int, examples: int) -> int:
    """The recipe's rule: a batch left at 128 shrinks to an eighth of fewer than 2000 examples, 16 to 64."""
    if global_batch_size == _SCALED_BATCH and examples < _SMALL_DATA:
        return max(16, min(64, examples // 8))
    return global_batch_size


def batches(examples: int, size: int, epochs: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Epoch and positions of the examples of each optimizer step; every epoch sees all, in an order of its own.

    The last batch of an epoch holds what is left.
    """
    for epoch in range(epochs):
        order = list(range(examples))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        for start in range(0, examples, size):
            yield epoch, order[start : start + size]


def steps(examples: int, size: int, epochs: int) -> int:
    """Number of optimizer steps."""
    return epochs * -(-examples // size)


def _check_encoder(mined: EncoderConfig, wanted: EncoderConfig) -> None:
    for name in EncoderConfig.model_fields:
        if getattr(mined, name) != getattr(wanted, name):
            raise InputError(
                f"the training data was mined with {name} = {getattr(mined, name)!r}, finetune is given "
                f"{getattr(wanted, name)!r}: give both stages the same"
            )


def _passages(directory: Path, content: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Passage texts by id, and documents by id, from the corpus folder that the training file names."""
    corpus = content.get("corpus", {})
    path = corpus.get("path", "./corpus/") if isinstance(corpus, dict) else None
    if not isinstance(path, str):
        raise InputError(f'{TRAINING_FILE}: expected "corpus": {{"path": ...}}, found {corpus!r}')
    folder = directory / path
    try:
        inside = folder.resolve().is_relative_to(directory.resolve())
        files = sorted(folder.glob("*.parquet"))
    except (ValueError, OSError):
        raise InputError(f"{TRAINING_FILE}: corpus.path {path!r} is no path: give a folder of the directory") from None
    if not inside:
        raise InputError(f"{TRAINING_FILE}: corpus.path leaves the directory: give a path inside of it")
    if not files:
        raise InputError(f"{TRAINING_FILE}: {path!r} holds no .parquet file: give the passages (columns id, text)")
    passages: dict[str, str] = {}
    documents: dict[str, str] = {}
    for file in files:
        try:
            columns = ["id", "text", *({_DOCUMENT} & set(pq.read_schema(file).names))]
            table = pq.read_table(file, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise InputError(f"{file}: expected a parquet file with columns id and text ({why})") from None
        names = [str(name) for name in table["id"].to_pylist()]
        passages.update(zip(names, table["text"].to_pylist(), strict=True))
        if _DOCUMENT in columns:
            named = zip(names, table[_DOCUMENT].to_pylist(), strict=True)
            documents |= {name: str(document) for name, document in named if document is not None}
    return passages, documents


def _example(record: Any, number: int, path: Path, passages: dict[str, str]) -> Example:
    where = f"{path.name}: data[{number}]"
    try:
        query = record["question"]
        positives = [str(entry["id"]) for entry in record["pos_doc"]]
        negatives = [str(entry["id"]) for entry in record["neg_doc"]]
    except (KeyError, TypeError):
        raise InputError(f"{where}: expected question, pos_doc and neg_doc with ids") from None
    if not isinstance(query, str) or not query.strip() or not positives:
        raise InputError(f"{where} has no question or no positive: remove it")
    if not negatives:
        raise InputError(f"{where} has no negative: mine some, or remove it")
    for name in (*positives, *negatives):
        if not isinstance(passages.get(name), str):
            raise InputError(f"{where} names the passage {name!r}, which the corpus does not hold")
    return Example(query, positives[0], tuple(negatives))
