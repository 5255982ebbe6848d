"""prep as the runner starts it: what fine-tuning and evaluation then read, and what bad input says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from beir.datasets.data_loader import GenericDataLoader

from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.encoder.config import EncoderConfig, read_encoder
from components.core.errors import InputError
from components.core.runner import Outcome, Source, execute
from components.prep.component import STAGE, PrepConfig
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name

pytestmark = pytest.mark.slow

PARTS = ("valve", "pump", "filter", "motor", "sensor", "bearing")
TRAINING_FILE = "train_mined.automodel_unrolled.json"


def labelled() -> list[dict]:
    """Thirty documents; every fifth question has two answers, and one brings a negative of its own."""
    records = []
    for n in range(30):
        part = PARTS[n % 6]
        text = f"To fit {part} {n}, loosen screw {n + 3} and press the {part} down."
        second = f"Chapter {n} again: {part} {n} is fitted from above."
        records.append(
            {
                "query": f"How do I fit {part} {n}?",
                "positive": [text, second] if n % 5 == 0 else text,
                "document": f"doc{n}",
            }
        )
    records[1]["negatives"] = ["The warranty ends after two years."]
    return records


def prep(work: Path, records: list[dict] | str, *, optional: dict[str, Path] | None = None, **given: object) -> Outcome:
    pairs = work / "pairs"
    pairs.mkdir(parents=True)
    text = records if isinstance(records, str) else "".join(json.dumps(record) + "\n" for record in records)
    (pairs / "records.jsonl").write_text(text, encoding="utf-8")
    small = resolve_settings([by_name("prep")], profile_name="small", values={})["prep"]
    config = PrepConfig(**{**small.model_dump(), "encode_batch_tokens": 2048, **given})
    return execute(
        STAGE,
        config,
        inputs={name: Source(path) for name, path in {"qa_pairs": pairs, **(optional or {})}.items()},
        outputs={name: work / "out" / name for name in STAGE.outputs},
        uris={},
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("prep")
    # A margin of 1 keeps what scores below the answer; the documents are much alike.
    prep(work, labelled(), train_ratio=0.6, val_ratio=0.2, test_ratio=0.2, hard_neg_margin=1.0)
    return work / "out"


def passages(published: Path) -> dict[str, str]:
    table = pq.read_table(published / "training_data" / "corpus" / "train.parquet")
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def test_training_file_is_what_automodel_reads(published: Path) -> None:
    folder = published / "training_data"
    content = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))
    texts = passages(published)
    assert (folder / content["corpus"]["path"]).is_dir()
    about = json.loads((folder / "corpus" / "merlin_metadata.json").read_text())
    assert about["class"] == "TextQADataset"
    of = {record["query"]: record for record in labelled()}
    for row in content["data"]:
        assert row["corpus_id"] == about["corpus_id"]
        record = of[row["question"]]
        own = [record["positive"]] if isinstance(record["positive"], str) else record["positive"]
        assert [texts[one["id"]] in own for one in row["pos_doc"]] == [True]
        assert not {texts[one["id"]] for one in row["neg_doc"]} & set(own)
        assert all(np.isfinite(one["score"]) for one in row["neg_doc"])
        assert len({one["id"] for one in row["neg_doc"]}) == len(row["neg_doc"]) == 5
    asked = [row["question"] for row in content["data"]]
    assert all(asked.count(q) == (2 if isinstance(of[q]["positive"], list) else 1) for q in asked)
    assert len({row["question_id"] for row in content["data"]}) == len(asked)
    mined = content["mining"]["args"]
    assert (mined["hard_neg_margin"], mined["hard_negatives_to_mine"]) == (1.0, 5)
    assert mined["encoder"]["passage_max_length"] == 128


def test_scores_are_those_of_the_base_model(published: Path, small_config: EncoderConfig) -> None:
    texts = passages(published)
    row = json.loads((published / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"][0]
    listed = [*row["pos_doc"], *row["neg_doc"]]
    encoder = load_base(
        EncoderConfig(
            **resolve_settings([by_name("prep")], profile_name="small", values={})["prep"].encoder().model_dump()
        )
    )
    query = encoder.encode([row["question"]], "query", batch_tokens=2048)[0]
    vectors = encoder.encode([texts[one["id"]] for one in listed], "passage", batch_tokens=2048)
    np.testing.assert_allclose(vectors @ query, [one["score"] for one in listed], atol=1e-5)


def test_beir_reads_the_test_set_and_training_never_saw_it(published: Path) -> None:
    corpus, queries, qrels = GenericDataLoader(str(published / "eval_data")).load(split="test")
    of = {record["query"]: record for record in labelled()}
    seen = set(passages(published).values())
    assert len(queries) == len(qrels) == 6
    for name, query in queries.items():
        own = of[query]["positive"]
        answers = {corpus[passage]["text"] for passage in qrels[name]}
        assert answers == ({own} if isinstance(own, str) else set(own))
        assert not answers & seen
    validation = json.loads((published / "training_data" / "val.json").read_text(encoding="utf-8"))["data"]
    assert len(validation) == 6
    assert not {row["question"] for row in validation} & set(queries.values())


def test_the_test_set_of_an_earlier_run_stays_and_is_not_trained_on(tmp_path: Path, published: Path) -> None:
    """A grown corpus and a frozen set with its manifest, as the runner and a later run hand it over."""
    frozen = published / "eval_data"
    grown = labelled()
    for n in range(30, 60):
        part = PARTS[n % 6]
        text = f"To mount {part} {n} you need spanner {n + 3}, a cloth and some patience."
        grown.append({"query": f"What is needed to mount {part} {n}?", "positive": text, "document": f"doc{n}"})
    tested = [json.loads(line) for line in (frozen / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    held = {query["metadata"]["document"] for query in tested}
    # A new question about a document of the frozen set, and one of its questions asked of a new document.
    grown.append({**next(one for one in labelled() if one["document"] in held), "query": "Anything else on this?"})
    grown.append({"query": tested[0]["text"].upper(), "positive": "Nobody knows that.", "document": "doc99"})
    outcome = prep(tmp_path, grown, optional={"frozen_eval": frozen}, conversion_seed=7, hard_neg_margin=1.0)
    out = tmp_path / "out"
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        assert (out / "eval_data" / name).read_bytes() == (frozen / name).read_bytes()
    assert outcome.metrics["eval_queries"] == len(tested) == 6
    assert outcome.metrics["train_questions"] == 60 - 6
    assert outcome.metrics["dropped_questions"] == 6 + 1 + 1
    rows = json.loads((out / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
    assert not {row["question"].lower() for row in rows} & {query["text"].lower() for query in tested}
    own = {text for one in labelled() if one["document"] in held for text in np.atleast_1d(one["positive"]).tolist()}
    assert not own & set(passages(out).values())
    assert "The test set is the frozen one: 6 questions" in (out / "data_report").read_text(encoding="utf-8")


def test_questions_of_the_golden_set_are_not_trained_on(tmp_path: Path) -> None:
    """In other spelling, too; the documents that answer them are. A golden set needs no corpus of its own."""
    asked = labelled()[::2]
    golden = tmp_path / "golden"
    golden.mkdir()
    lines = [json.dumps({"_id": str(n), "text": record["query"].upper()}) for n, record in enumerate(asked)]
    (golden / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = prep(tmp_path, labelled(), optional={"golden_eval": golden}, hard_neg_margin=1.0)
    out = tmp_path / "out"
    rows = json.loads((out / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
    rows += json.loads((out / "training_data" / "val.json").read_text(encoding="utf-8"))["data"]
    trained = {row["question"] for row in rows}
    assert trained and not trained & {record["query"] for record in asked}
    tested = {json.loads(line)["text"] for line in (out / "eval_data" / "queries.jsonl").read_text().splitlines()}
    assert tested & {record["query"] for record in asked}
    assert trained | tested < {record["query"] for record in labelled()}
    assert outcome.metrics["dropped_questions"] == len(labelled()) - len(trained | tested) > 0
    assert "Asked by golden_eval too" in (out / "data_report").read_text(encoding="utf-8")
    kept = set(passages(out).values())
    assert any(text in kept for record in asked for text in np.atleast_1d(record["positive"]).tolist())


def test_another_checkpoint_mines(tmp_path: Path, small_config: EncoderConfig) -> None:
    """The miner's own vectors and prefixes score, and what later stages read is the base model's settings."""
    tuned = load_base(small_config.model_copy(update={"query_prefix": "find: "}))
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in tuned.backbone.encoder.parameters():
            weights += 0.01 * torch.randn_like(weights)
    save_checkpoint(tuned, tmp_path / "tuned")
    prep(tmp_path, labelled(), optional={"miner": tmp_path / "tuned"}, hard_neg_margin=1.0)
    texts = passages(tmp_path / "out")
    folder = tmp_path / "out" / "training_data"
    row = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))["data"][0]
    query = tuned.encode([row["question"]], "query")[0]
    vectors = tuned.encode([texts[one["id"]] for one in row["neg_doc"]], "passage")
    np.testing.assert_allclose(vectors @ query, [one["score"] for one in row["neg_doc"]], atol=1e-5)
    assert read_encoder(folder).query_prefix == small_config.query_prefix


def test_what_a_second_model_takes_for_an_answer_is_not_mined(tmp_path: Path, small_config: EncoderConfig) -> None:
    """The second model is the first with other weights: by both the margin holds."""
    second = load_base(small_config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in second.backbone.encoder.parameters():
            weights += 0.05 * torch.randn_like(weights)
    save_checkpoint(second, tmp_path / "second")
    mined = {}
    for name, optional in (("alone", {}), ("checked", {"checker": tmp_path / "second"})):
        prep(tmp_path / name, labelled(), optional=optional, hard_neg_margin=1.0, hard_negatives_to_mine=20)
        folder, texts = tmp_path / name / "out" / "training_data", passages(tmp_path / name / "out")
        rows = json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
        mined[name] = {
            (row["question"], texts[one["id"]]) for row in rows for one in row["neg_doc"] if one["origin"] == "mined"
        }
    answers = {one["query"]: np.atleast_1d(one["positive"]).tolist() for one in labelled()}

    asked = sorted({query for query, _ in mined["alone"]})
    known = sorted({text for own in answers.values() for text in own} | {text for _, text in mined["alone"]})
    every = second.encode(asked, "query") @ second.encode(known, "passage").T
    score = {(query, text): every[i, j] for i, query in enumerate(asked) for j, text in enumerate(known)}
    lowest = {query: min(score[query, text] for text in answers[query]) for query in asked}
    refused = {(query, text) for query, text in mined["alone"] if score[query, text] > lowest[query] + 1e-5}
    assert len(refused) > 10
    assert not refused & mined["checked"]


def test_given_negatives_come_first_and_near_duplicates_of_the_answer_not_at_all(tmp_path: Path) -> None:
    records = labelled()
    long = "Before work starts, close the main valve, drain the pipe, and wait until the gauge shows zero."
    records.append({"query": "What comes before work?", "positive": long, "document": "safety"})
    near = [long.replace("zero", "nil"), long.replace("zero", "nil").replace("drain the pipe", "flush it")]
    # The first is nearly the answer; the second shares too little with it.
    records[-1]["negatives"] = [near[0], near[1], "The warranty ends after two years."]
    prep(tmp_path, records, train_ratio=0.95, val_ratio=0, test_ratio=0.05, hard_neg_margin=1.0, conversion_seed=1)
    texts = passages(tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
    (row,) = [row for row in rows if row["question"] == "What comes before work?"]
    found = [(texts[one["id"]], one["origin"]) for one in row["neg_doc"]]
    assert found[:2] == [(near[1], "given"), ("The warranty ends after two years.", "given")]
    assert [origin for _, origin in found[2:]] == ["mined"] * 3
    assert near[0] not in dict(found)


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_report_counts_what_became_of_every_question_and_shows_texts_as_texts(tmp_path: Path) -> None:
    records = labelled()
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for one in records:
        one["positive"] = [hostile + text for text in np.atleast_1d(one["positive"]).tolist()]
        one["query"] += hostile
        one["score"] = 8
    records += [{"query": "bad?", "positive": "worse", "score": 2}] * 3
    outcome = prep(tmp_path, records, hard_neg_margin=1.0)
    page = (tmp_path / "out" / "data_report").read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert not {"script", "img", "a", "iframe", "link"} & set(parsed.tags)
    assert not [name for name in parsed.attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert "default-src &#x27;none&#x27;" in page
    shown = " ".join(parsed.texts)
    assert hostile in shown
    for expected in (
        "Read 33",
        "Score below quality_threshold −3 30",
        "only 6 test questions",
        "24 training questions",
        "Hardest negatives",
        "30 of 33 scores are at least quality_threshold 7",
        "Share of the scores, by the lowest of each bin",
    ):
        assert expected in shown, expected
    assert outcome.metrics["dropped_questions"] == 3
    assert outcome.metrics["train_questions"] == 24


@pytest.mark.parametrize(
    ("records", "message"),
    [
        pytest.param("{broken\n", "records.jsonl:1 is not JSON", id="no JSON"),
        pytest.param('{"query": "a"}\n', "records.jsonl:1: expected a text", id="no positive"),
        pytest.param('{"query": 3, "positive": "a"}\n', "'query', found 3", id="query no text"),
        pytest.param("", "no question of", id="empty"),
        pytest.param('{"query": "a", "positive": "b", "score": 4}\n', "lower quality_threshold", id="all judged bad"),
        pytest.param('{"query": "a", "positive": "b"}\n', "leaves the test side empty", id="one document"),
    ],
)
def test_bad_input_is_one_line_and_publishes_nothing(tmp_path: Path, records: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        prep(tmp_path, records)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "training_data").exists()


def test_two_processes_mine_what_one_mines_and_the_cache_is_used_again(tmp_path: Path) -> None:
    given = {"hard_neg_margin": 1.0, "embedding_cache_uri": str(tmp_path / "cache")}
    prep(tmp_path / "one", labelled(), hard_neg_margin=1.0)
    prep(tmp_path / "two", labelled(), num_processes=2, **given)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    prep(tmp_path / "again", labelled(), **given)
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    assert len(kept) == 8
    found = [
        json.loads((tmp_path / name / "out" / "training_data" / TRAINING_FILE).read_text(encoding="utf-8"))["data"]
        for name in ("one", "two", "again")
    ]
    assert found[1] == found[2]
    for one, two in zip(found[0], found[1], strict=True):
        listed = ([*row["pos_doc"], *row["neg_doc"]] for row in (one, two))
        for first, second in zip(*listed, strict=True):
            assert (first["id"], first.get("origin")) == (second["id"], second.get("origin"))
            assert first["score"] == pytest.approx(second["score"], abs=2e-6)


def test_generated_questions_that_do_not_find_their_passage_are_not_trained_on(tmp_path: Path) -> None:
    topics = ["whales", "violins", "volcanoes", "bread", "chess", "glaciers", "saddles", "lighthouses"]
    records = []
    for n in range(24):
        topic = topics[n % 8]
        text = f"Part {n} is about {topic}: what a person who works with {topic} in year {1900 + n} ought to know."
        wrong = f"Tell me all there is to learn on {topics[(n + 1) % 8]}, number {n}"
        asked = [f"What should people know about {topic} in {1900 + n}?", wrong]
        pairs = [{"question": question, "answer": "so", "segment_ids": [1]} for question in asked]
        chunks = [{"chunk_id": 1, "text": text}]
        records.append({"source_id": f"{n}.txt", "chunks": chunks, "deduplicated_qa_pairs": pairs})

    def trained(work: Path, **given: object) -> tuple[set[str], bytes, Outcome]:
        outcome = prep(work, records, near_duplicate_threshold=None, hard_neg_margin=1.0, **given)
        data = json.loads((work / "out" / "training_data" / TRAINING_FILE).read_text())["data"]
        test = (work / "out" / "eval_data" / "queries.jsonl").read_bytes()
        return {one["question"] for one in data}, test, outcome

    every, test, _ = trained(tmp_path / "all")
    good, same_test, outcome = trained(tmp_path / "filtered", round_trip_top_k=1)
    assert any(question.startswith("Tell me") for question in every)
    assert good
    assert {question for question in good if question.startswith("Tell me")} == set()
    assert same_test == test
    assert b"Tell me" in test
    report = (tmp_path / "filtered" / "out" / "data_report").read_text()
    assert "does not find its own passage" in report
    assert outcome.metrics["dropped_questions"] > 10
