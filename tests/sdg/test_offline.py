"""The offline methods do what their papers say, the same way every time, without a look at the golden questions."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from components.core.runner import Source, execute
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name
from components.sdg.component import SdgConfig
from components.sdg.offline import OfflineGenerator
from components.sdg.passages.chunking import chunk_text
from components.sdg.program import run
from tests.data.pydoc.build import write_corpus

GOLDEN = Path(__file__).parents[1] / "data/pydoc/queries.jsonl"
PASSAGES = [
    "Owls hunt voles at night. Owls fly without a sound. The barn is where they nest in spring.",
    "The train to Basel leaves at noon. The train is late in winter. The platform is where they wait.",
    "Bread needs flour and yeast. Bread rises in the warm oven. The crust is where they taste salt.",
]
RERUN = """
import sys
from pathlib import Path
from components.sdg.component import SdgConfig
from components.sdg.program import run
run(SdgConfig(generator="offline", num_pairs=3), corpus=Path(sys.argv[1]), qa_pairs=Path(sys.argv[2]),
    generation_report=Path(sys.argv[2] + ".html"), past_runs=Path(sys.argv[2] + ".runs"))
"""


def pairs(method: str, text: str = PASSAGES[0]) -> list[dict]:
    chunks = chunk_text(text, sentences=5, max_words=250)
    made = OfflineGenerator(PASSAGES, method=method).make_pairs(chunks, per_passage=20, random_=random.Random(0))
    return [pair.to_json() for pair in made]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pydoc") / "corpus"
    write_corpus(directory)
    return directory


def test_inverse_cloze_asks_with_a_whole_sentence() -> None:
    questions = {pair["question"] for pair in pairs("inverse_cloze")}
    assert questions == {
        "Owls hunt voles at night.",
        "Owls fly without a sound.",
        "The barn is where they nest in spring.",
    }


def test_crops_keep_the_order_of_the_words_of_one_span() -> None:
    for pair in pairs("cropping"):
        rest = iter(PASSAGES[0].split())
        assert all(word in rest for word in pair["question"].split())


def test_keywords_are_the_terms_that_scikit_learn_weighs_most() -> None:
    vectorizer = TfidfVectorizer(norm=None)
    weights = vectorizer.fit_transform(PASSAGES).toarray()[0]
    weight = dict(zip(vectorizer.get_feature_names_out(), weights, strict=True))
    for pair in pairs("keywords"):
        chosen = pair["question"].split()
        assert "owls" in chosen
        assert not {"the", "is", "where", "they"} & set(chosen)
        assert min(weight[term] for term in chosen) >= weight["night"]


def test_the_answer_is_another_sentence_of_the_passage() -> None:
    for pair in pairs("inverse_cloze"):
        assert pair["answer"] in PASSAGES[0]
        assert pair["answer"] != pair["question"]


def test_mixed_uses_every_method_and_labels_its_queries() -> None:
    assert {pair["synthetic_method"] for pair in pairs("mixed")} == {"keywords", "inverse_cloze", "cropping"}


@pytest.mark.parametrize("text", ["", "Too short.", "数据"])
def test_makes_nothing_of_too_short_a_text(text: str) -> None:
    assert pairs("inverse_cloze", text) == []


@pytest.fixture(scope="module")
def ties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents whose first sentence shares as much weight, of other terms, with the second as with the third."""
    directory = tmp_path_factory.mktemp("ties")
    for number in range(20):
        left, right = ([f"{side}{number}n{term}" for term in range(7)] for side in "XY")
        text = f"{' '.join(left + right)}. {' '.join(left)}. {' '.join(right)}."
        (directory / f"{number:02}.txt").write_text(text)
        for rare in range(1, 7):
            (directory / f"{number:02}-{rare}.txt").write_text(f"{' '.join(left[rare:] + right[rare:])} " + "and " * 15)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["corpus", "ties"])
def test_reruns_are_byte_identical_whatever_the_hash_seed(
    documents: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    corpus = request.getfixturevalue(documents)
    made = []
    for seed in ("0", "1", "4242"):
        out = tmp_path / seed
        command = [sys.executable, "-c", RERUN, str(corpus), str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        made.append((out / "qa_pairs.jsonl").read_bytes())
    assert made[0] == made[1] == made[2]


def test_offline_data_says_that_it_is_not_for_quality_claims(corpus: Path, tmp_path: Path) -> None:
    config = SdgConfig(generator="offline", num_files=3)
    outputs = {"generation_report": tmp_path / "report.html", "past_runs": tmp_path / "past_runs"}
    run(config, corpus=corpus, qa_pairs=tmp_path / "out", **outputs)
    lines = (tmp_path / "out" / "qa_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    stamped = [*map(json.loads, lines), json.loads((tmp_path / "out" / "generation_result.json").read_text())]
    assert [record["for_quality_claims"] for record in stamped] == [False] * 4


def test_small_profile_makes_pairs_of_the_demo_corpus_without_the_golden_questions(
    corpus: Path, tmp_path: Path
) -> None:
    stage = by_name("sdg")
    config = resolve_settings([stage], profile_name="small", values={})["sdg"]
    assert isinstance(config, SdgConfig)
    assert config.generator == "offline"
    out = tmp_path / "qa_pairs"
    outputs = {"qa_pairs": out, "generation_report": tmp_path / "report.html", "past_runs": tmp_path / "past_runs"}
    outcome = execute(stage, config, inputs={"corpus": Source(corpus)}, outputs=outputs, uris={})
    records = [json.loads(line) for line in (out / "qa_pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    questions = [pair["question"] for record in records for pair in record["deduplicated_qa_pairs"]]
    assert len(questions) == outcome.metrics["pairs"] > 500
    golden = {json.loads(line)["text"].casefold() for line in GOLDEN.read_text(encoding="utf-8").splitlines()}
    assert not golden & {question.casefold() for question in questions}
