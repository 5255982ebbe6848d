from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from components.core.errors import InputError
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.encode_texts import EncodeOptions
from components.eval.bm25 import bm25_top_k
from components.eval.metrics import Scores, check_ids, compute_search_depth, measure, metric_name, to_rankings
from components.eval.systems import search_with_encoder

pytestmark = pytest.mark.slow

CUTOFFS = [1, 3, 10, 100]


@pytest.fixture(scope="module")
def ours(collection: Path, checkpoints: dict[str, Path]) -> Scores:
    """MiniLM on the collection; 100 is more than it has passages."""
    data = read_beir(collection)
    runs = search_with_encoder(
        checkpoints["base"], "base", {"test": data}, max(CUTOFFS), EncodeOptions(batch_tokens=2048)
    ).rankings
    return measure(data.qrels, runs["test"], CUTOFFS)


def test_equal_to_beirs_own_path(collection: Path, checkpoints: dict[str, Path], ours: Scores) -> None:
    corpus, queries, qrels = GenericDataLoader(str(collection)).load(split="test")
    search = DenseRetrievalExactSearch(SentenceBERT(str(checkpoints["base"])), batch_size=16, show_progress_bar=False)
    beir = EvaluateRetrieval(search, CUTOFFS, score_function="dot")
    found = beir.retrieve(corpus, queries)
    expected = beir.evaluate(qrels, found, CUTOFFS)
    expected = dict(zip(("NDCG", "MAP", "Recall", "Precision"), expected, strict=True))
    expected["MRR"] = beir.evaluate_custom(qrels, found, CUTOFFS, metric="mrr")
    assert ours.mean.keys() == expected.keys()
    for family, values in expected.items():
        assert ours.mean[family] == pytest.approx(values, abs=1e-4), family
    assert 0.3 < ours.mean["NDCG"]["NDCG@10"] < 0.99


def test_equal_to_sentence_transformers(collection: Path, checkpoints: dict[str, Path], ours: Scores) -> None:
    data = read_beir(collection)
    relevant = {query: {name for name, score in judged.items() if score > 0} for query, judged in data.qrels.items()}
    evaluator = InformationRetrievalEvaluator(
        data.queries,
        data.corpus,
        relevant,
        mrr_at_k=CUTOFFS,
        ndcg_at_k=CUTOFFS,
        precision_recall_at_k=CUTOFFS,
        map_at_k=[10, 100],
        batch_size=16,
    )
    figures = evaluator(SentenceTransformer(str(checkpoints["base"]), device="cpu"))
    for family in ("NDCG", "Recall", "Precision", "MRR", "MAP"):
        # It divides MAP@k by min(k, answers), trec_eval by all answers: the same from k = 2 on, here.
        for k in [10, 100] if family == "MAP" else CUTOFFS:
            theirs = figures[f"cosine_{family.lower()}@{k}"]
            assert ours.mean[family][metric_name(family, k)] == pytest.approx(theirs, abs=1e-4), (family, k)


def test_the_mean_is_the_mean_of_the_queries(ours: Scores) -> None:
    for family in ours.mean.values():
        for name, mean in family.items():
            assert np.mean([values[name] for values in ours.per_query.values()]) == pytest.approx(mean, abs=2e-5), name


def data_of(units: dict[str, str], qrels: dict[str, dict[str, int]], level: str) -> BeirData:
    return BeirData(dict.fromkeys(units, "text"), units, dict.fromkeys(qrels, "query"), qrels, {}, level)


def run_of(data: BeirData, similarity: list[list[float]], k: int) -> dict[str, dict[str, float]]:
    depth = compute_search_depth(data, k)
    scores = np.array(similarity, dtype=np.float32)
    positions = np.argsort(-scores, axis=1)[:, :depth]
    return to_rankings(np.take_along_axis(scores, positions, axis=1), positions, data, k)


def test_a_document_scores_as_its_best_passage() -> None:
    data = data_of({"a1": "a", "a2": "a", "a3": "a", "b1": "b", "c1": "c"}, {"q": {"b": 1}}, "document")
    run = run_of(data, [[0.9, 0.8, 0.7, 0.6, 0.5]], 2)
    assert run == {"q": {"a": pytest.approx(0.9), "b": pytest.approx(0.6)}}
    assert measure(data.qrels, run, [1, 2]).mean["MRR"] == {"MRR@1": 0.0, "MRR@2": 0.5}


def test_what_has_the_querys_id_is_the_query_itself() -> None:
    data = data_of({"q": "q", "x": "x", "y": "y"}, {"q": {"y": 1}}, "passage")
    run = run_of(data, [[1.0, 0.2, 0.1]], 2)
    assert list(run["q"]) == ["x", "y"]
    check_ids(data, "here")
    with pytest.raises(InputError, match="here: query 'q' and its answer have the same _id"):
        check_ids(data_of({"q": "q"}, {"q": {"q": 1}}, "passage"), "here")


def test_one_query_and_a_corpus_of_one_passage() -> None:
    data = data_of({"p": "p"}, {"q": {"p": 1}}, "passage")
    scores = measure(data.qrels, run_of(data, [[0.4]], 100), [1, 100])
    assert scores.mean["NDCG"] == {"NDCG@1": 1.0, "NDCG@100": 1.0}
    assert scores.mean["Precision"] == {"P@1": 1.0, "P@100": 0.01}


def test_a_query_that_found_nothing_counts_as_zero() -> None:
    qrels = {"q1": {"p": 1}, "q2": {"p": 1}}
    assert measure(qrels, {"q1": {"p": 1.0}, "q2": {}}, [10]).mean["Recall"] == {"Recall@10": 0.5}


def test_bm25_by_the_formula() -> None:
    """Robertson & Zaragoza 2009 with Lucene's idf, counted by hand."""
    passages = ["red apple red", "green apple pie with cream", "blue sky", ""]
    words = [passage.split() for passage in passages]
    mean_length = sum(map(len, words)) / len(words)

    def score(query: list[str], passage: list[str]) -> float:
        total = 0.0
        for term in query:
            found_in = sum(term in other for other in words)
            idf = math.log(1 + (len(words) - found_in + 0.5) / (found_in + 0.5))
            tf = Counter(passage)[term]
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(passage) / mean_length))
        return total

    for query in (["red", "apple"], ["apple"], ["sky", "cream"]):
        scores, positions = bm25_top_k([" ".join(query).upper() + "!"], passages, 10)
        expected = np.array([score(query, passage) for passage in words])
        hits = scores[0] > -np.inf
        assert scores[0][hits] == pytest.approx(expected[positions[0][hits]], rel=1e-5)
        assert set(positions[0][hits]) == set(np.flatnonzero(expected))


@pytest.mark.parametrize("passages", [["", "!!"], ["Ä ß 日本"]], ids=["no words", "other words"])
def test_bm25_finds_nothing_without_a_common_word(passages: list[str]) -> None:
    scores, positions = bm25_top_k(["unrelated", ""], passages, 5)
    assert scores.shape == positions.shape == (2, len(passages))
    assert np.all(scores == -np.inf)


def test_shorter_vectors_equal_to_sentence_transformers(collection: Path, checkpoints: dict[str, Path]) -> None:
    data = read_beir(collection)
    found = search_with_encoder(
        checkpoints["base"], "base", {"test": data}, 10, EncodeOptions(batch_tokens=2048), dimensions=[32, 96]
    )
    for dimension, runs in found.shortened.items():
        model = SentenceTransformer(str(checkpoints["base"]), truncate_dim=dimension, device="cpu")
        queries = model.encode([*data.queries.values()], normalize_embeddings=True)
        passages = model.encode([*data.corpus.values()], normalize_embeddings=True)
        assert passages.shape[1] == dimension
        names = list(data.corpus)
        best = {
            query: [names[place] for place in np.argsort(-row)[:3]]
            for query, row in zip(data.queries, queries @ passages.T, strict=True)
        }
        assert {query: list(run)[:3] for query, run in runs["test"].items()} == best
    assert list(found.shortened) == [32, 96]
    assert found.cost is not None
    assert (found.cost.dimension, found.cost.bytes_per_passage) == (384, 1536)
    assert found.cost.passages_per_second > 0 < found.cost.milliseconds_per_query


def test_more_dimensions_than_the_vectors_have_are_refused(collection: Path, checkpoints: dict[str, Path]) -> None:
    sets = {"test": read_beir(collection)}
    with pytest.raises(InputError, match="the vectors have 384 dimensions, and eval_dimensions has 385"):
        search_with_encoder(checkpoints["base"], "base", sets, 10, EncodeOptions(batch_tokens=2048), dimensions=[385])
