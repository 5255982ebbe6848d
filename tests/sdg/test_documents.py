"""From documents to what the LLM is asked: passages bounded in tokens, parts, bundles, styles, instructions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from components.core.encoder.config import base_model_directory
from components.core.errors import InputError
from components.core.runner import Source, execute
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name
from components.sdg.component import SdgConfig
from components.sdg.llm.prompts import split_into_sections
from components.sdg.passages.bundles import group_documents
from components.sdg.passages.chunking import chunk_text, split_into_parts
from components.sdg.passages.tokens import make_passage_check
from components.sdg.program import preview, run
from components.sdg.read.corpus import Document
from components.sdg.records import Chunk
from tests.sdg.kills import write_corpus
from tests.sdg.llm_server import LlmServer, llm_server

SMALL = resolve_settings([by_name("sdg")], profile_name="small", values={})["sdg"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-documents")
    with llm_server() as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(base_model_directory(SMALL))


def generate(corpus: Path, work: Path, **given: Any) -> list[dict[str, Any]]:
    work.mkdir(exist_ok=True)
    outputs = {name: work / name for name in ("qa_pairs", "generation_report", "past_runs")}
    run(SdgConfig(**given), corpus=corpus, **outputs)
    lines = (outputs["qa_pairs"] / "qa_pairs.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


HARD = st.lists(
    st.sampled_from(["word", "End.", "\n\n", "x" * 300, "数据库" * 40, "0x7f3a9c|", "Größe!", "a_b.c/d-e", "🙂🙂"]),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(HARD.map(" ".join), st.integers(12, 40), st.integers(0, 2))
def test_no_passage_is_longer_than_the_model_reads(tokenizer: Any, text: str, limit: int, overlap: int) -> None:
    config = SMALL.model_copy(update={"passage_max_length": limit, "passage_prefix": "passage: "})
    chunks = chunk_text(text, sentences=3, max_words=50, overlap=overlap, fits=make_passage_check(config))
    for chunk in chunks:
        assert len(tokenizer("passage: " + chunk.text)["input_ids"]) <= limit
    if not overlap:
        assert "".join(chunk.text for chunk in chunks).replace(" ", "") == "".join(text.split())


def test_a_passage_starts_with_the_end_of_the_one_before() -> None:
    text = " ".join(f"Sentence number {n} stands here." for n in range(10))
    chunks = chunk_text(text, sentences=3, max_words=100, overlap=1)
    for before, after in pairwise(chunks):
        assert after.text.startswith(before.text.split(". ")[-1].rstrip("."))
        assert after.start == before.end - 5
    words = text.split()
    assert all(" ".join(words[chunk.start : chunk.end]) == chunk.text for chunk in chunks)
    assert chunks[-1].end == len(words)
    assert chunks[-1].sentence_count > 1  # an overlap alone is no passage


def test_tokens_are_counted_by_the_stage_when_asked_to(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "table.txt").write_text("| 0x7f3a9c11 | 3.14159265 | a_b_c_d |\n" * 200)
    given = {"generator": "offline", **SMALL.encoder().model_dump()}
    lengths = {}
    for by_tokens in (False, True):
        records = generate(tmp_path / "corpus", tmp_path / str(by_tokens), chunk_by_tokens=by_tokens, **given)
        texts = [one["text"] for one in records[0]["chunks"]]
        lengths[by_tokens] = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert lengths[True] <= SMALL.passage_max_length < lengths[False]


def test_a_base_model_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        make_passage_check(SdgConfig(base_model=str(tmp_path)))


def test_a_long_document_is_asked_about_in_parts_and_gets_more_questions(server: LlmServer, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, count in (("long.txt", 300), ("short.txt", 20)):
        text = " ".join(f"Sentence {n} of {name[:-4]} is about part{n}of{name[:-4]}." for n in range(count))
        (corpus / name).write_text(text)
    long, short = generate(corpus, tmp_path / "out", llm_base_url=server.url, max_prompt_words=400)
    prompts = [body["messages"][1]["content"] for path, body in server.requests if "chat" in path]
    assert max(len(prompt.split()) for prompt in prompts) < 1100  # the part, twice at most, and the instruction
    assert len(long["deduplicated_qa_pairs"]) >= 4 * len(short["deduplicated_qa_pairs"]) > 0
    asked = {segment for pair in long["deduplicated_qa_pairs"] for segment in pair["segment_ids"]}
    assert max(asked) > len(long["chunks"]) * 0.8  # the end of the document is asked about, too
    assert len(long["deduplicated_qa_pairs"]) == len(long["qa_evaluations"]["evaluations"])


def test_questions_can_grow_with_the_length_of_a_document(server: LlmServer, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, count in (("long", 200), ("short", 10)):
        text = " ".join(f"Sentence {n} of {name} is about part{n}of{name}." for n in range(count))
        (corpus / f"{name}.txt").write_text(text)
    generate(corpus, tmp_path / "out", llm_base_url=server.url, num_pairs_per_1000_words=15)
    prompts = [body["messages"][1]["content"] for path, body in server.requests if "chat" in path]
    asked = {name: re.search(r"Write (\d+) questions.*question_style: (\d+) question", p, re.DOTALL).groups()
             for name in ("long", "short") for p in prompts if "Write" in p and f"of {name} " in p}  # fmt: skip
    assert asked == {"long": ("21", "12"), "short": ("7", "4")}  # 1,400 words and 70: shares are scaled, too


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_parts_hold_every_passage_once_and_are_of_about_one_length(count: int) -> None:
    chunks = [Chunk(text="", chunk_id=n, word_count=90 + n % 20) for n in range(count)]
    parts = split_into_parts(chunks, 1000)
    assert [chunk for part in parts for chunk in part] == chunks
    sizes = [sum(chunk.word_count for chunk in part) for part in parts]
    assert max(sizes) <= 1000
    assert len(parts) == 1 or min(sizes) > 500


def test_the_llm_is_told_styles_kinds_and_language(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 1)
    given = {"question_styles": {"keywords": 1}, "reasoning_counts": {"visual": 2, "causal": 1}, "language": "German"}
    generate(corpus, tmp_path / "out", llm_base_url=server.url, num_pairs=9, num_sections=2, **given)
    prompt = next(
        body["messages"][1]["content"] for _, body in server.requests if "Write 9" in str(body.get("messages", ""))
    )
    assert "9 keywords" in prompt
    assert "6 visual, 3 causal" in prompt
    assert "in German" in prompt
    assert prompt.index("=== Section 1 ===") < prompt.index("Segment 1:") < prompt.index("=== Section 2 ===")


def test_own_instructions_take_the_place_of_the_built_in_ones(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 1)
    (tmp_path / "judge.txt").write_text("Be strict about valves for $$5.")
    prompts = {"qa_generation": "Ask $num_pairs times, in verse.", "quality_judge": f"file:{tmp_path / 'judge.txt'}"}
    records = generate(corpus, tmp_path / "out", llm_base_url=server.url, prompts=prompts)
    sent = [body["messages"][1]["content"] for path, body in server.requests if "chat" in path]
    assert any("Ask 7 times, in verse.\n" in prompt for prompt in sent)
    assert any("Be strict about valves for $5." in prompt for prompt in sent)
    assert all("<<<DOCUMENT" in prompt for prompt in sent)  # documents stay marked as data
    assert records[0]["deduplicated_qa_pairs"]


@pytest.mark.parametrize("text", ["costs $5", "$unknown_name", "file:/nowhere/prompt.txt"])
def test_an_instruction_that_cannot_be_filled_in_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"prompts\.qa_generation"):
        preview(SdgConfig(prompts={"qa_generation": text}), corpus=write_corpus(tmp_path / "corpus", 1))


def test_bundles_are_asked_about_together(server: LlmServer, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 5)
    (corpus / "bundles.json").write_text('{"bundles": [{"docs": ["004.txt", "001.txt"]}]}')
    given = {"multi_doc": True, "multi_doc_manifest": "bundles.json", "bundle_size": 2}
    records = generate(corpus, tmp_path / "out", llm_base_url=server.url, **given)
    assert [r["bundle_members"] for r in records] == [["004.txt", "001.txt"], ["000.txt", "002.txt"], ["003.txt"]]
    first = records[0]
    assert re.fullmatch("[0-9a-f]{16}", first["source_id"])
    assert (first["is_multi_doc"], records[2]["is_multi_doc"]) == (True, False)
    assert [one["chunk_id"] for one in first["chunks"]] == list(range(1, len(first["chunks"]) + 1))
    assert {one["doc_id"] for one in first["chunks"]} == {"004.txt", "001.txt"}
    assert all(record["deduplicated_qa_pairs"] for record in records)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[a.txt, nowhere.txt]]", "nowhere.txt"),
        ("[[a.txt, b.txt], [a.txt]]", "stands there twice"),
        ("[[a.txt, b.txt, c.txt, d.txt]]", "max_docs_per_bundle"),
        ("{broken", "cannot be read"),
        ("[a.txt]", "expected lists"),
        ("[[]]", "expected lists"),
        ("7", "expected lists"),
    ],
)
def test_a_list_of_bundles_that_is_wrong_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bundles.yaml").write_text(content)
    documents = [Document(f"{name}.txt", "text") for name in "abcd"]
    with pytest.raises(InputError, match=words):
        group_documents(documents, tmp_path, SdgConfig(multi_doc=True, multi_doc_manifest="bundles.yaml"))
    with pytest.raises(InputError, match="no such file in the corpus"):
        group_documents(documents, tmp_path, SdgConfig(multi_doc=True, multi_doc_manifest="../bundles.yaml"))


def test_sections_of_bundles_by_strategy() -> None:
    chunks = [Chunk(text="", chunk_id=n, word_count=0, doc_id=doc) for n, doc in enumerate("aaaabb")]

    def sections(strategy: str) -> list[str]:
        return ["".join(chunk.doc_id for chunk in section) for section in split_into_sections(chunks, 2, strategy)]

    assert sections("sequential") == ["aaa", "abb"]
    assert sections("doc_balanced") == ["aab", "aab"]
    assert sections("interleaved") == ["aba", "baa"]


@pytest.mark.slow
def test_prep_takes_what_the_llm_path_makes_of_the_demos_corpus_as_it_is(server: LlmServer, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name, text in topics.items():
        (tmp_path / "corpus" / f"{name}.txt").write_text(text, encoding="utf-8")
    stages = [by_name("sdg"), by_name("prep")]
    settings = {"sdg.generator": "llm", "sdg.llm_base_url": server.url, "sdg.num_pairs": 3}
    configs = resolve_settings(stages, profile_name="small", values=settings)
    for stage in stages:
        execute(
            stage,
            configs[stage.name],
            inputs={name: Source(tmp_path / name) for name in stage.inputs},
            outputs={name: tmp_path / name for name in stage.outputs},
            uris={},
        )
    questions = {
        pair["question"]
        for line in (tmp_path / "qa_pairs" / "qa_pairs.jsonl").read_text().splitlines()
        for pair in json.loads(line)["deduplicated_qa_pairs"]
    }
    trained = json.loads((tmp_path / "training_data" / "train_mined.automodel_unrolled.json").read_text())["data"]
    assert {example["question"] for example in trained} <= questions
    assert len(trained) > 100
    assert (tmp_path / "eval_data" / "qrels" / "test.tsv").read_text().count("\n") > 3
