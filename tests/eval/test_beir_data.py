from __future__ import annotations

from pathlib import Path

import pytest
from beir.datasets.data_loader import GenericDataLoader

from components.core.errors import InputError
from components.core.retrieval.beir_data import read_beir

CORPUS = '{"_id":"a#1","title":"T","text":"one","metadata":{"document":"a"}}\n{"_id":"b#1","text":"two"}\n'
QUERIES = '{"_id":"q1","text":"first?","metadata":{"style":"question"}}\n{"_id":"q2","text":"second?"}\n'
HEADER = "query-id\tcorpus-id\tscore\n"


def folder(tmp_path: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = HEADER + "q1\ta#1\t1\n") -> Path:
    (tmp_path / "qrels").mkdir()
    for name, text in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return tmp_path


def test_reads_what_beirs_own_loader_reads(collection: Path) -> None:
    corpus, queries, qrels = GenericDataLoader(str(collection)).load(split="test")
    data = read_beir(collection)
    assert data.corpus == {name: f"{p['title']} {p['text']}" for name, p in corpus.items()}
    assert (data.queries, data.qrels, data.level) == (queries, qrels, "passage")


def test_queries_without_a_relevant_answer_are_left_out(tmp_path: Path) -> None:
    data = read_beir(folder(tmp_path, qrels=HEADER + "q1\ta#1\t1\nq2\tb#1\t0\n"))
    assert list(data.queries) == ["q1"]
    assert data.query_metadata == {"q1": {"style": "question"}}
    assert data.documents == {"a#1": "a", "b#1": "b#1"}


def test_judged_documents(tmp_path: Path) -> None:
    data = read_beir(folder(tmp_path, qrels=HEADER + "q1\ta\t1\nq2\tb#1\t1\n"))
    assert data.level == "document"


def test_a_folder_without_corpus_asks_about_another_ones_passages(tmp_path: Path, collection: Path) -> None:
    (tmp_path / "golden").mkdir()
    golden = folder(tmp_path / "golden", qrels=HEADER + "q1\tassignment\t1\n")
    (golden / "corpus.jsonl").unlink()
    searched = read_beir(collection)
    with pytest.raises(InputError, match=r"there is no file .*corpus\.jsonl"):
        read_beir(golden)
    data = read_beir(golden, searched=searched)
    assert data.corpus == searched.corpus
    assert data.level == "document"


def test_line_separators_inside_texts_and_a_byte_order_mark_are_no_lines(tmp_path: Path) -> None:
    corpus = '\ufeff{"_id":"a#1","text":"one\u2028two\x85three"}\r\n\r\n{"_id":"b","text":""}\r\n'
    data = read_beir(folder(tmp_path, corpus=corpus, qrels=(HEADER + "q1\ta#1\t1\n").replace("\n", "\r\n")))
    assert data.corpus == {"a#1": "one\u2028two\x85three", "b": ""}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({"corpus": ""}, r"corpus\.jsonl has no passage", id="empty corpus"),
        pytest.param({"corpus": CORPUS + "{"}, r"corpus\.jsonl:3: not JSON", id="broken JSON"),
        pytest.param({"corpus": CORPUS + "[1]\n"}, r"corpus\.jsonl:3: found list", id="no record"),
        pytest.param({"corpus": '{"_id":7,"text":"x"}'}, r"corpus\.jsonl:1: _id must be text, found 7", id="number id"),
        pytest.param({"corpus": '{"_id":"","text":"x"}'}, r"corpus\.jsonl:1: _id '' is empty", id="empty id"),
        pytest.param({"corpus": CORPUS + CORPUS}, r"corpus\.jsonl:3: _id 'a#1' is repeated", id="repeated passage"),
        pytest.param({"corpus": '{"_id":"x"}'}, r"corpus\.jsonl:1: text must be text, found None", id="no text"),
        pytest.param({"corpus": '{"_id":"x","text":"\\ud83d"}'}, r":1: text has half a character", id="half character"),
        pytest.param({"corpus": '{"_id":"x","text":"\ud83d"}'}, r":1: not UTF-8", id="not UTF-8"),
        pytest.param(
            {"corpus": '{"_id":"x","text":"y","metadata":[1]}'}, r":1: metadata must be a record", id="metadata"
        ),
        pytest.param({"queries": '{"_id":"q1","text":" "}'}, r"queries\.jsonl:1: the query is empty", id="empty query"),
        pytest.param({"queries": QUERIES + QUERIES}, r"queries\.jsonl:3: _id 'q1' is repeated", id="repeated query"),
        pytest.param({"qrels": ""}, r"test\.tsv:1: expected the header", id="empty qrels"),
        pytest.param({"qrels": "q1\ta#1\t1\n"}, r"test\.tsv:1: expected the header", id="no header"),
        pytest.param({"qrels": HEADER}, r"no query has a relevant answer", id="no judgement"),
        pytest.param({"qrels": HEADER + "q1\ta#1\t0\n"}, r"no query has a relevant answer", id="nothing relevant"),
        pytest.param({"qrels": HEADER + "q1 0 a#1 1\n"}, r"test\.tsv:2: expected three columns", id="TREC columns"),
        pytest.param({"qrels": HEADER + "q9\ta#1\t1\n"}, r"test\.tsv:2: there is no query 'q9'", id="unknown query"),
        pytest.param({"qrels": HEADER + "q1\ta#1\t.5\n"}, r"test\.tsv:2: the score must be a whole", id="fraction"),
        pytest.param(
            {"qrels": HEADER + "q1\ta#1\t1\nq1\tz\t1\n"},
            r"test\.tsv:3: .* no passage and no document 'z'",
            id="unknown",
        ),
        pytest.param(
            {"qrels": HEADER + "q1\ta#1\t1\nq1\ta\t1\n"}, r"judges passages and documents", id="passages and documents"
        ),
        pytest.param({"qrels": HEADER + "q1\ta#1\t1\nq1\ta#1\t2\n"}, r":3: .* judged twice", id="contradiction"),
    ],
)
def test_bad_folders_are_refused_by_file_and_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_beir(folder(tmp_path, **files))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    (folder(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=name):
        read_beir(tmp_path)
