"""The exported model must find what the checkpoint finds."""

from __future__ import annotations

import numpy as np
import pytest

from components.core.errors import InputError
from components.core.serving.vector_limits import PARITY_LIMITS, CosineSummary, choose_limits
from components.export.component import ExportConfig
from components.export.retrieval_parity import SearchSample, measure_retrieval, sample_search
from tests.exported import Exported

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def unit(rows: int) -> np.ndarray:
    vectors = RNG.normal(size=(rows, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


PASSAGES = unit(60)
QUERIES = PASSAGES[:40] + 0.1 * unit(40)
SAMPLE = SearchSample(
    [f"q{n}" for n in range(40)], [{f"p{n}": 1} for n in range(40)], ["x"] * 60, [f"p{n}" for n in range(60)]
)


def test_equal_vectors_find_the_same() -> None:
    found = measure_retrieval(SAMPLE, (QUERIES, PASSAGES), (QUERIES, PASSAGES))
    assert (found.overlap, found.ndcg, found.ndcg_checkpoint) == (1.0, 1.0, 1.0)
    found.require(PARITY_LIMITS["fp32"])


def test_one_answer_that_changes_places_is_no_loss() -> None:
    swapped = QUERIES.copy()
    swapped[0] = PASSAGES[50] + 0.9 * PASSAGES[0]
    measure_retrieval(SAMPLE, (QUERIES, PASSAGES), (swapped, PASSAGES)).require(PARITY_LIMITS["fp16"])


@pytest.mark.parametrize(
    "broken", [(QUERIES[::-1], PASSAGES), (QUERIES, unit(60)), (QUERIES * np.nan, PASSAGES)],
    ids=["permuted queries", "other passages", "NaN"],
)  # fmt: skip
def test_another_search_is_refused(broken: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="does not find the checkpoint's passages: queries 40, overlap_at_10 0"):
        measure_retrieval(SAMPLE, (QUERIES, PASSAGES), broken).require(PARITY_LIMITS["int8"])


def test_the_sample_holds_the_answers(minilm: Exported) -> None:
    sample = sample_search(ExportConfig(parity_queries=5, parity_passages=10), minilm.eval_data)
    assert sample is not None
    assert (len(sample.queries), len(sample.passages)) == (5, 10)
    answers = {passage for judged in sample.judged for passage in judged}
    assert answers <= set(sample.units)
    assert sample_search(ExportConfig(parity_queries=0), minilm.eval_data) is None
    assert sample_search(ExportConfig(), None) is None


def test_noise_of_half_precision_lowers_limits_but_not_for_fp32() -> None:
    noisy = CosineSummary(mean=0.998, p1=0.995, minimum=0.98, deviation=0.001)
    lowered = choose_limits("fp16", noisy)
    assert (lowered.mean, lowered.p1, lowered.minimum) == pytest.approx((0.995, 0.992, 0.977))
    assert choose_limits("fp32", noisy) == PARITY_LIMITS["fp32"]
    quiet = CosineSummary(mean=0.99999, p1=0.9999, minimum=0.9999, deviation=1e-6)
    assert choose_limits("fp16", quiet) == PARITY_LIMITS["fp16"]
    broken = CosineSummary(mean=0.2, p1=0.0, minimum=-1.0, deviation=0.5)
    assert choose_limits("fp16", broken).mean == PARITY_LIMITS["int8"].mean
    assert choose_limits("fp16", CosineSummary(np.nan, np.nan, np.nan, np.nan)) == PARITY_LIMITS["fp16"]
