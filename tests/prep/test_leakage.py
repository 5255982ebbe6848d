"""Fifty hostile corpora, from files to files: what training reads holds nothing of what the test set asks."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.core.retrieval.beir_data import read_beir
from components.prep.component import RecordSettings
from components.prep.mine.mining import mine
from components.prep.read.inputs import read_records
from components.prep.split.data_split import DataSplit
from components.prep.split.frozen import copy_frozen_eval, read_frozen_eval
from components.prep.write import TRAINING_FILE, write_eval_data, write_training_data
from tests.core.similarity import jaccard
from tests.prep.settings import mining, split

THRESHOLD = 0.8
FOOTER = "all rights reserved by the makers of this manual who wish you a pleasant day with your pump"


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """A mining model: a text's vector counts its words, at length 1."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hostile_corpus(seed: int, folder: str = "") -> list[dict]:
    """Documents with copies and near-copies of each other's passages, footers, copied questions, bundles."""
    rng = random.Random(seed)
    pool = [" ".join(f"w{rng.randrange(400)}" for _ in range(30)) for _ in range(40)]
    records = []
    for n in range(rng.randint(8, 25)):
        texts = [*rng.sample(pool, rng.randint(1, 2)), " ".join(f"u{seed}x{n}x{i}" for i in range(20))]
        if rng.random() < 0.4:
            words = rng.choice(pool).split()
            words[rng.randrange(30)] = "changed"
            texts.append(" ".join(words))
        if rng.random() < 0.3:
            texts.append(rng.choice(pool).upper().replace(" ", "  "))
        texts.append(FOOTER)
        texts = list(dict.fromkeys(texts))
        questions = rng.randint(0, 40) if n == 0 else rng.randint(0, 3)
        # Names that differ in their folder alone.
        name = f"{folder}dir{n % 2}/same{n // 2}.v1.txt"
        records.append(
            {
                "source_id": name,
                "bundle_members": [name] + ([f"{folder}shared{n // 10}"] if n % 5 == 0 else []),
                "chunks": [{"chunk_id": i, "text": text} for i, text in enumerate(texts, 1)],
                "deduplicated_qa_pairs": [
                    {
                        "question": f"{rng.choice(['What', 'what '])} about {rng.randrange(30)} and number {n % 4}?",
                        "segment_ids": rng.sample(range(1, len(texts)), min(len(texts) - 1, rng.randint(1, 2))),
                    }
                    for _ in range(questions)
                ],
            }
        )
    return records


def prepare(records: list[dict], work: Path, seed: int, frozen: Path | None = None) -> DataSplit:
    pairs = work / "pairs"
    pairs.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (pairs / "qa_pairs.jsonl").write_text(lines, encoding="utf-8")
    found = read_records(pairs, RecordSettings())
    parts = split(
        found,
        train_ratio=0.6,
        val_ratio=0.2,
        seed=seed,
        near_duplicate_threshold=THRESHOLD,
        frozen=read_frozen_eval(frozen) if frozen else None,
    )
    if not parts.train:
        return parts
    mined = mine(lambda *texts: tuple(map(word_counts, texts)), parts, mining(5, batch=7))
    write_training_data(work / "training_data", parts.train, mined, parts.val, parts.training_passages)
    if frozen:
        copy_frozen_eval(frozen, work / "eval_data")
    else:
        write_eval_data(work / "eval_data", parts.test, found.passages)
    return parts


def check_no_leak(work: Path) -> int:
    """Compare what training reads with what the test set asks; return the number of training rows."""
    content = json.loads((work / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
    table = pq.read_table(work / "training_data" / "corpus" / "train.parquet").to_pylist()
    texts = {row["id"]: row["text"] for row in table}
    validation = json.loads((work / "training_data" / "val.json").read_text(encoding="utf-8"))["data"]
    test = read_beir(work / "eval_data")
    answers = {test.corpus[name] for judged in test.qrels.values() for name in judged}
    for query in {row["question"] for row in content} | {row["question"] for row in validation}:
        assert all(jaccard(query, asked) < THRESHOLD for asked in test.queries.values())
    for text in texts.values():
        assert all(jaccard(text, answer) < THRESHOLD for answer in answers), text
    of_query: dict[str, set[str]] = {}
    for row in content:
        of_query.setdefault(row["question"], set()).update(texts[one["id"]] for one in row["pos_doc"])
    checked = {texts[one["id"]] for row in validation for one in row["pos_doc"]}
    for row in content:
        for one in row["neg_doc"]:
            negative = texts[one["id"]]
            assert np.isfinite(one["score"])
            assert all(jaccard(negative, positive) < THRESHOLD for positive in of_query[row["question"]])
            assert all(jaccard(negative, positive) < THRESHOLD for positive in checked)
    return len(content)


@pytest.mark.parametrize("seed", range(50))
def test_nothing_of_the_test_set_is_trained_on(tmp_path: Path, seed: int) -> None:
    parts = prepare(hostile_corpus(seed), tmp_path, seed)
    asked = len(parts.train) + len(parts.val) + len(parts.test) + sum(parts.dropped.values())
    assert asked == sum(len(record["deduplicated_qa_pairs"]) for record in hostile_corpus(seed))
    if parts.train and parts.test:
        assert check_no_leak(tmp_path) >= len(parts.train)


def test_the_corpora_are_not_empty_shells(tmp_path: Path) -> None:
    """Most of them do have both sides, and a footer that all documents share does not make one group of them."""
    sides = [prepare(hostile_corpus(seed), tmp_path / str(seed), seed) for seed in range(50)]
    assert sum(bool(parts.train and parts.test) for parts in sides) >= 45
    assert all(FOOTER not in parts.training_passages for parts in sides if parts.test)


@pytest.mark.parametrize("seed", [0, 2, 3, 4, 5, 6, 7, 8])
def test_a_frozen_set_stays_out_of_a_grown_and_edited_corpus(tmp_path: Path, seed: int) -> None:
    first = hostile_corpus(seed)
    parts = prepare(first, tmp_path / "first", seed)
    assert parts.test
    frozen = tmp_path / "first" / "eval_data"
    # Later: new documents, other splits, a test document with an edited passage under a new name.
    later = [*first, *hostile_corpus(seed + 1000, folder="new/")]
    tested = next(record for record in first if record["source_id"] == parts.test[0].document)
    moved = [{**chunk, "text": chunk["text"] + " amended"} for chunk in tested["chunks"]]
    question = {"question": "entirely new wording of something", "segment_ids": [1]}
    later.append({**tested, "source_id": "moved.txt", "chunks": moved, "deduplicated_qa_pairs": [question]})
    again = prepare(later, tmp_path / "second", seed + 1, frozen)
    assert not again.test
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (tmp_path / "second" / "eval_data" / name).read_bytes() == (frozen / name).read_bytes()
    held = {example.document for example in parts.test}
    assert not held & {example.document for example in (*again.train, *again.val)}
    assert not [e for e in (*again.train, *again.val) if e.document == "moved.txt"]
    assert check_no_leak(tmp_path / "second") > 0
