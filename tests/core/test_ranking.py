"""Figures of one query, against trec_eval."""

from __future__ import annotations

import pytest
import pytrec_eval

from components.core.retrieval.ranking import ndcg_at


@pytest.mark.parametrize("ranked", [["a", "b", "d", "c"], ["c", "d", "a"], ["x", "y", "b"], ["x"], list("xyzdcba")])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_trec_evals(ranked: list[str], k: int) -> None:
    """Against pytrec_eval, which BEIR's own evaluation uses."""
    judged = {"a": 3, "b": 1, "c": 0, "d": 2}
    found = {"q": {one: float(-place) for place, one in enumerate(ranked)}}
    measure = f"ndcg_cut_{k}"
    expected = pytrec_eval.RelevanceEvaluator({"q": judged}, {f"ndcg_cut.{k}"}).evaluate(found)["q"][measure]
    assert ndcg_at(k, ranked, judged) == pytest.approx(expected)
