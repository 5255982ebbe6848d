"""The same questions in every kind of input are read as the same examples, alone and mixed."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.prep.component import RecordSettings
from components.prep.read.inputs import read_records
from components.prep.read.records import Records
from components.prep.write import write_eval_data
from tests.prep.settings import split

QUESTIONS = [("why?", ["because"], "d1"), ("how?", ["so", "like this"], "d2")]
PASSAGES = [("p1", "because", "d1"), ("p2", "so", "d2"), ("p3", "like this", "d2"), ("p4", "unasked", "d3")]


def generated(**other: Any) -> list[dict[str, Any]]:
    found = []
    for document in ("d1", "d2", "d3"):
        texts = [text for _, text, holder in PASSAGES if holder == document]
        pairs = [
            {"question": query, "segment_ids": [texts.index(text) + 1 for text in answers], "query_type": "multi_hop"}
            for query, answers, holder in QUESTIONS
            if holder == document
        ]
        found.append(
            {
                "file_name": [document],
                "source_id": document,
                "chunks": [{"chunk_id": n, "text": text} for n, text in enumerate(texts, 1)],
                "deduplicated_qa_pairs": pairs,
                "qa_evaluations": {"evaluations": [{"overall": {"score": 8.0}} for _ in pairs]},
                **other,
            }
        )
    return found


def plain() -> list[dict[str, Any]]:
    rows = [{"query": query, "positive": answers, "document": document} for query, answers, document in QUESTIONS]
    return [*rows, {"id": "p4", "text": "unasked", "document": "d3"}]


def by_id() -> list[dict[str, Any]]:
    """Questions before the passages that they name."""
    names = {text: name for name, text, _ in PASSAGES}
    rows = [{"query": query, "positive_id": [names[text] for text in answers]} for query, answers, _ in QUESTIONS]
    return [*rows, *({"id": name, "text": text, "document": document} for name, text, document in PASSAGES)]


def write(directory: Path, kind: str) -> None:
    lines = {"sdg.jsonl": generated, "plain.jsonl": plain, "ids.jsonl": by_id}
    if kind in lines:
        (directory / kind).write_text("".join(json.dumps(one) + "\n" for one in lines[kind]()), encoding="utf-8")
    elif kind == "sdg.json":
        (directory / "generated_batch0_0_3.json").write_text(json.dumps(generated()), encoding="utf-8")
    elif kind == "sdg.parquet":
        pq.write_table(pa.Table.from_pylist(generated()), directory / kind)
    elif kind == "cells of text.parquet":
        cells = ("chunks", "deduplicated_qa_pairs", "qa_evaluations")
        rows = [{k: json.dumps(v) if k in cells else v for k, v in one.items()} for one in generated()]
        pq.write_table(pa.Table.from_pylist(rows), directory / kind)
    elif kind == "plain.parquet":
        columns = {name: None for row in plain() for name in row}
        pq.write_table(pa.Table.from_pylist([columns | row for row in plain()]), directory / kind)
    elif kind == "automodel":
        (directory / "corpus").mkdir()
        rows = [{"id": name, "text": text} for name, text, _ in PASSAGES]
        pq.write_table(pa.Table.from_pylist(rows), directory / "corpus" / "train.parquet")
        names = {text: name for name, text, _ in PASSAGES}
        data = [
            {"question": query, "pos_doc": [{"id": names[text]} for text in answers], "neg_doc": [{"id": "p4"}]}
            for query, answers, _ in QUESTIONS
        ]
        content = {"corpus": {"path": "./corpus/"}, "data": data}
        (directory / "train.json").write_text(json.dumps(content), encoding="utf-8")
    else:
        write_beir(directory if kind == "beir" else directory / "collection")


def write_beir(folder: Path) -> None:
    """The first question is judged in train.tsv, the second in test.tsv."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": name, "text": text, "metadata": {"document": holder}} for name, text, holder in PASSAGES]
    queries = [{"_id": f"q{n}", "text": query} for n, (query, _, _) in enumerate(QUESTIONS)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judged = [["q0\tp1\t1", "q0\tp2\t0"], ["q1\tp2\t1", "q1\tp3\t2"]]
    for name, lines in zip(("train", "test"), judged, strict=True):
        text = "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n"
        (folder / "qrels" / f"{name}.tsv").write_text(text, encoding="utf-8")


def asked(records: Records) -> set[tuple[str, frozenset[str]]]:
    return {(example.query, frozenset(example.positives)) for example in records.examples}


EXPECTED = {(query, frozenset(answers)) for query, answers, _ in QUESTIONS}
KINDS = [
    "sdg.jsonl", "sdg.json", "sdg.parquet", "cells of text.parquet", "plain.jsonl", "plain.parquet", "ids.jsonl",
    "automodel", "beir", "collection",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    records = read_records(tmp_path, RecordSettings())
    assert asked(records) == EXPECTED
    assert set(records.passages) == {text for _, text, _ in PASSAGES}
    if kind != "automodel":
        assert {text: set(holders) for text, holders in records.passages.items()} == {
            text: {holder} for _, text, holder in PASSAGES
        }
        assert {example.query: example.document for example in records.examples} == {"why?": "d1", "how?": "d2"}


def test_kinds_may_be_mixed_and_a_question_knows_its_source(tmp_path: Path) -> None:
    for kind in ("sdg.jsonl", "plain.parquet", "ids.jsonl", "collection"):
        write(tmp_path, kind)
    records = read_records(tmp_path, RecordSettings())
    assert asked(records) == EXPECTED
    assert len(records.examples) == 8
    assert {e.metadata["source"] for e in records.examples} == {"generated", "plain", "ids", "collection"}


def test_of_several_generations_the_one_that_the_handoff_names_is_read(tmp_path: Path) -> None:
    write(tmp_path, "sdg.jsonl")
    old = [{**one, "source_id": f"old {one['source_id']}"} for one in generated()]
    (tmp_path / "sdg_20260101.jsonl").write_text("".join(json.dumps(one) + "\n" for one in old), encoding="utf-8")
    write(tmp_path, "plain.parquet")
    handoff = {"dataset_name": "sdg", "output_path": "sdg.jsonl", "schema_version": 1}
    (tmp_path / "generation_result.json").write_text(json.dumps(handoff), encoding="utf-8")
    records = read_records(tmp_path, RecordSettings())
    assert {example.document for example in records.examples} == {"d1", "d2"}
    assert len(records.examples) == 4
    (tmp_path / "sdg.jsonl").unlink()
    with pytest.raises(InputError, match=r"names sdg\.jsonl, which is not there"):
        read_records(tmp_path, RecordSettings())


def test_a_bundle_keeps_its_documents_together(tmp_path: Path) -> None:
    one = generated()[1]
    one |= {"source_id": "5f3a", "bundle_members": ["a", "b"], "is_multi_doc": True}
    one["chunks"] = [{**chunk, "doc_id": name} for chunk, name in zip(one["chunks"], ("a", "b"), strict=True)]
    (tmp_path / "sdg.json").write_text(json.dumps([one]), encoding="utf-8")
    records = read_records(tmp_path, RecordSettings())
    assert records.passages == {"so": ["a"], "like this": ["b"]}
    assert {"5f3a", "a", "b"} in records.groups.values()


def test_group_and_time_come_from_the_record_or_its_metadata(tmp_path: Path) -> None:
    rows = [
        {"query": "a?", "positive": "a", "document": "d1", "team": "red", "written": "2026-01-31"},
        {"query": "b?", "positive": "b", "document": "d2", "metadata": {"team": "red", "written": 1769817600}},
        {"id": "p", "text": "c", "document": "d3", "team": 4, "written": "2026-02-01T00:00:00+00:00"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    records = read_records(tmp_path, RecordSettings(split_group_field="team", split_time_field="written"))
    assert records.groups == {"team=red": {"d1", "d2"}, "team=4": {"d3"}}
    assert set(records.times) == {"d1", "d2", "d3"}
    assert records.times["d2"] < records.times["d3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2]", r"a\.json\[0\] is int: expected a record"),
        ("a.json", "{broken", r"a\.json is not JSON"),
        ("a.json", "[" * 100_000, r"a\.json is not JSON"),
        ("a.parquet", "no parquet", r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl", '{"query": "a", "positive_id": "x"}\n', r"a\.jsonl:1: positive_id names 'x', and no passage"),
        (
            "a.jsonl",
            '{"id": "x", "text": "t"}\n{"id": "x", "text": "u"}\n',
            r"a\.jsonl:2: the id 'x' is another",
        ),
        ("a.jsonl", '{"source_id": "d", "chunks": "[]]"}\n', r"a\.jsonl:1: chunks is text that is not JSON"),
        ("a.jsonl", '{"source_id": "d", "chunks": 7}\n', r"a\.jsonl:1: expected source_id and chunks"),
        ("a.jsonl", '{"chunks": []}\n', r"a\.jsonl:1: expected source_id and chunks"),
        ("a.jsonl", '{"query": "a", "positive": "b", "written": "soon"}\n', r"a\.jsonl:1: written must be a number or"),
        ("a.txt", "text", "holds no .jsonl, .json, .parquet file and no BEIR folder"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        read_records(tmp_path, RecordSettings(split_time_field="written"))
    assert "\n" not in str(raised.value)


def test_a_beir_folder_that_judges_documents_is_refused(tmp_path: Path) -> None:
    write_beir(tmp_path)
    shutil.rmtree(tmp_path / "qrels")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\n", encoding="utf-8")
    with pytest.raises(InputError, match="judges documents: training needs the passages that answer"):
        read_records(tmp_path, RecordSettings())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["1", "half \ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "query", "positive", "positive_id", "negatives", "negative_ids", "document", "metadata", "score", "id", "text",
    "source_id", "file_name", "chunks", "deduplicated_qa_pairs", "qa_evaluations", "bundle_members", "corpus", "data",
)  # fmt: skip
EVALUATIONS = st.fixed_dictionaries({"evaluations": st.lists(st.fixed_dictionaries({"overall": JSON}) | JSON)}) | JSON
CHUNKS = st.lists(st.fixed_dictionaries({"chunk_id": st.integers(0, 3) | JSON, "text": st.text(max_size=3) | JSON}))
PAIRS = st.lists(st.fixed_dictionaries({"question": st.text(max_size=3) | JSON, "segment_ids": JSON}) | JSON)
HOSTILE = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), JSON),
    st.fixed_dictionaries(
        {"source_id": st.just("d"), "chunks": CHUNKS, "deduplicated_qa_pairs": PAIRS, "qa_evaluations": EVALUATIONS}
    ),
    JSON,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(HOSTILE, min_size=1, max_size=3), as_list=st.booleans())
def test_no_content_makes_a_traceback(tmp_path: Path, found: list[Any], as_list: bool) -> None:
    """Whatever is read without an error can be split and written, too."""
    shutil.rmtree(tmp_path)
    (tmp_path / "in").mkdir(parents=True)
    lines = json.dumps(found) if as_list else "\n".join(map(json.dumps, found))
    (tmp_path / "in" / f"a.{'json' if as_list else 'jsonl'}").write_text(lines, encoding="utf-8")
    try:
        records = read_records(tmp_path / "in", RecordSettings())
    except InputError as error:
        assert "\n" not in str(error)
        return
    parts = split(records, train_ratio=0.5, val_ratio=0, seed=1, near_duplicate_threshold=0.8)
    write_eval_data(tmp_path / "eval", [*parts.train, *parts.test], records.passages)
    for line in (tmp_path / "eval" / "queries.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_a_table_with_dates_and_gaps(tmp_path: Path) -> None:
    rows = [
        {"query": "a?", "positive": "a", "score": 8.0, "written": datetime(2026, 1, 31, tzinfo=UTC)},
        {"query": "b?", "positive": "b", "score": float("nan"), "written": datetime(2026, 2, 1, tzinfo=UTC)},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    records = read_records(tmp_path, RecordSettings(split_time_field="written"))
    assert records.scores == [8.0]
    assert records.times["a"] + 86400 == records.times["b"]
    write_eval_data(tmp_path / "eval", records.examples, records.passages)
    written = [json.loads(line) for line in (tmp_path / "eval" / "queries.jsonl").read_text().splitlines()]
    assert [one["metadata"]["written"][:10] for one in written] == ["2026-01-31", "2026-02-01"]


def test_generated_questions_carry_the_source_that_their_record_names(tmp_path: Path) -> None:
    record = {
        "source_id": "wiki/a",
        "source": "wiki",
        "chunks": [{"chunk_id": 1, "text": "The valve opens at 3 bar."}],
        "deduplicated_qa_pairs": [{"question": "when", "segment_ids": [1], "question_style": "keywords"}],
    }
    (tmp_path / "qa_pairs.jsonl").write_text(json.dumps(record) + "\n")
    (example,) = read_records(tmp_path, RecordSettings()).examples
    assert example.generated
    assert example.metadata == {"source": "wiki", "segment_ids": [1], "question_style": "keywords"}


def test_groups_of_another_deduplication_keep_documents_together(tmp_path: Path) -> None:
    names = ("a/one.txt", "a/two.txt", "b/three.md", "b/four.md", "c/five.txt")
    records = [{"query": f"What is {name}?", "positive": f"{name} is this.", "document": name} for name in names]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    groups = {
        "exact": {"groups": [["a/one.txt", "b/three"]]},
        "fuzzy": {"clusters": {"7": ["three.md", "four", "nobody.txt"]}},
    }
    (tmp_path / "dedup_groups.json").write_text(json.dumps(groups), encoding="utf-8")
    found = read_records(tmp_path, RecordSettings())
    assert len(found.examples) == 5
    together = [{"a/one.txt", "b/three.md"}, {"b/three.md", "b/four.md"}]
    assert sorted(found.groups.values(), key=sorted) == sorted(together, key=sorted)
    for seed in range(10):
        parts = split(found, train_ratio=0.4, val_ratio=0.2, seed=seed)
        sides = {e.document: side for side in ("train", "val", "test") for e in getattr(parts, side)}
        assert sides["a/one.txt"] == sides["b/three.md"] == sides["b/four.md"]


def test_groups_beside_a_beir_folders_files_are_read_and_other_files_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passages = [{"_id": f"p{n}", "text": f"passage {n}", "metadata": {"document": f"d{n}.txt"}} for n in range(4)]
    queries = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)]
    for name, records in (("corpus.jsonl", passages), ("queries.jsonl", queries), ("notes.jsonl", [{"a": 1}])):
        (tmp_path / name).write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    lines = "".join(f"q{n}\tp{n}\t1\n" for n in range(4))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")
    (tmp_path / "groups.json").write_text(json.dumps({"groups": [["d0.txt", "d3"]]}), encoding="utf-8")
    found = read_records(tmp_path, RecordSettings())
    assert list(found.groups.values()) == [{"d0.txt", "d3.txt"}]
    assert "notes.jsonl is left out" in caplog.text
    assert "groups.json is left out" not in caplog.text


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"groups": [["same.txt", "x"]]}, "'same.txt' fits several documents, a/same.txt, b/same.txt among them"),
        ({"groups": 3}, "expected a list of groups under 'groups', found 3"),
        ({"exact": {"groups": [[1]]}}, "a group is a list of names of documents, found [1] in 'groups'"),
    ],
)
def test_groups_that_are_none_are_one_line(tmp_path: Path, groups: dict[str, Any], message: str) -> None:
    records = [{"query": f"{name}?", "positive": name, "document": name} for name in ("a/same.txt", "b/same.txt")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    (tmp_path / "groups.json").write_text(json.dumps(groups), encoding="utf-8")
    with pytest.raises(InputError, match=r"groups\.json") as raised:
        read_records(tmp_path, RecordSettings())
    assert message in str(raised.value)
