"""Files hold what was mined, move as one folder, and keep any text."""

from __future__ import annotations

from pathlib import Path

from beir.datasets.data_loader import GenericDataLoader

from components.prep.read.records import QueryExample
from components.prep.write import passage_id, write_eval_data

ODD = 'Größe "5"\u2028line\n\ttab, \\ and 漢字'


def test_beir_gives_back_any_text(tmp_path: Path) -> None:
    passages = {ODD: ["d1"], "plain": ["d2", "d3"]}
    write_eval_data(
        tmp_path / "eval", [QueryExample(f"is {ODD}?", (ODD,), "d1"), QueryExample("one?", ("plain",), "d2")], passages
    )
    corpus, queries, qrels = GenericDataLoader(str(tmp_path / "eval")).load(split="test")
    assert {name: entry["text"] for name, entry in corpus.items()} == {passage_id(text): text for text in passages}
    assert {queries[q]: [corpus[p]["text"] for p in judged] for q, judged in qrels.items()} == {
        f"is {ODD}?": [ODD],
        "one?": ["plain"],
    }
