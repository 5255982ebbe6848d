"""Files hold what was mined, move as one folder, and keep any text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from beir.datasets.data_loader import GenericDataLoader

from components.prep.mining import Choice, Mined, Negative, hard_negatives
from components.prep.records import Example
from components.prep.write import TRAINING_FILE, passage_id, write_eval_data, write_training_data

ODD = 'Größe "5"\u2028line\n\ttab, \\ and 漢字'


def test_beir_gives_back_any_text(tmp_path: Path) -> None:
    passages = {ODD: ["d1"], "plain": ["d2", "d3"]}
    write_eval_data(
        tmp_path / "eval", [Example(f"is {ODD}?", (ODD,), "d1"), Example("one?", ("plain",), "d2")], passages
    )
    corpus, queries, qrels = GenericDataLoader(str(tmp_path / "eval")).load(split="test")
    assert {name: entry["text"] for name, entry in corpus.items()} == {passage_id(text): text for text in passages}
    assert {queries[q]: [corpus[p]["text"] for p in judged] for q, judged in qrels.items()} == {
        f"is {ODD}?": [ODD],
        "one?": ["plain"],
    }


def test_b1_no_negative_where_none_is_allowed_and_no_score_without_a_number(tmp_path: Path) -> None:
    query, passages = np.float32([[1, 0]]), np.float32([[0.5, 0], [0.9, 0], [0.49, 0]])
    (found,), (above,) = hard_negatives(query, passages, positives=[[0]], excluded=[[0]], choice=Choice(5, margin=0.99))
    assert [(row, origin) for row, _, origin in found] == [(2, "mined")]
    assert above == 1
    mined = [Mined((0.5,), tuple(Negative("n", score, origin) for _, score, origin in found))]
    write_training_data(tmp_path / "t", [Example("q", ("p",), "d")], mined, [], ["p", "n"])
    text = (tmp_path / "t" / TRAINING_FILE).read_text(encoding="utf-8")
    assert "Infinity" not in text
    assert len(json.loads(text)["data"][0]["neg_doc"]) == 1


def test_b16_the_folder_can_be_moved(tmp_path: Path) -> None:
    mined = [Mined((0.5, 0.4), (Negative(ODD, 0.3, "mined"),))]
    write_training_data(tmp_path / "made", [Example("q", ("p", "r"), "d")], mined, [], ["p", "r", ODD])
    moved = Path(shutil.move(tmp_path / "made", tmp_path / "elsewhere"))
    content = json.loads((moved / TRAINING_FILE).read_text(encoding="utf-8"))
    table = pq.read_table(moved / content["corpus"]["path"] / "train.parquet").to_pylist()
    texts = {row["id"]: row["text"] for row in table}
    rows = [(row["question_id"], [texts[p["id"]] for p in row["pos_doc"]]) for row in content["data"]]
    assert rows == [("q0_0", ["p"]), ("q0_1", ["r"])]
    assert [texts[row["neg_doc"][0]["id"]] for row in content["data"]] == [ODD, ODD]
