"""Blocked search finds what sorting the whole score matrix finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.core.retrieval.search import top_k


@pytest.mark.parametrize("query_block", [1, 4, 100])
@pytest.mark.parametrize("passage_block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_equals_brute_force_with_ties_in_any_blocks(query_block: int, passage_block: int, k: int) -> None:
    rng = np.random.default_rng(0)
    # Small whole numbers: products are exact and many scores tie.
    queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
    passages = rng.integers(-2, 3, (40, 4)).astype(np.float32)
    scores, rows, _ = top_k(queries, passages, k, query_block=query_block, passage_block=passage_block)
    every = queries @ passages.T
    assert scores.shape == rows.shape == (9, min(k, 40))
    np.testing.assert_array_equal(scores, -np.sort(-every, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(every, rows, axis=1), scores)
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_excluded_passages_end_a_row_with_minus_infinity() -> None:
    rng = np.random.default_rng(1)
    queries, passages = (rng.standard_normal((n, 8)).astype(np.float32) for n in (5, 20))
    banned = rng.random((5, 20)) < 0.8

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        rows = slice(first_query, first_query + scores.shape[0])
        part = banned[rows, first_passage : first_passage + scores.shape[1]]
        scores[torch.from_numpy(part).to(scores.device)] = -torch.inf

    scores, rows, _ = top_k(queries, passages, 10, exclude=exclude, query_block=2, passage_block=3)
    expected = np.where(banned, -np.inf, queries @ passages.T)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :10], rtol=1e-5, atol=1e-6)
    found = np.isfinite(scores)
    assert found.sum() == np.minimum((~banned).sum(axis=1), 10).sum()
    assert not np.take_along_axis(banned, rows, axis=1)[found].any()


@pytest.mark.parametrize("passages", [1100, 3999, 30_000])
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("share_banned", [0.0, 0.5, 0.9999])
def test_groups_of_scores_give_the_exact_best(passages: int, k: int, share_banned: float) -> None:
    """So many passages that whole groups are passed over; ties everywhere, and rows with next to nothing left."""
    rng = np.random.default_rng(k)
    queries, searched = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (7, passages))
    banned = rng.random((7, passages)) < share_banned

    def exclude(scores: torch.Tensor, first_query: int, first_passage: int) -> None:
        part = banned[first_query : first_query + scores.shape[0], first_passage : first_passage + scores.shape[1]]
        scores[torch.from_numpy(part)] = -torch.inf

    scores, rows, _ = top_k(queries, searched, k, exclude=exclude, query_block=3, passage_block=25_000)
    expected = np.where(banned, -np.inf, queries @ searched.T)
    np.testing.assert_array_equal(scores, -np.sort(-expected, axis=1)[:, :k])
    found = np.isfinite(scores)
    np.testing.assert_array_equal(np.take_along_axis(expected, rows, axis=1)[found], scores[found])
    assert all(len(set(row[ok])) == ok.sum() for row, ok in zip(rows, found, strict=True))


def test_tensors_stay_where_they_are_and_bfloat16_is_summed_in_float32() -> None:
    rng = np.random.default_rng(4)
    queries, passages = (torch.from_numpy(rng.normal(size=(n, 32)).astype(np.float32)).bfloat16() for n in (5, 900))
    scores, rows, _ = top_k(queries, passages, 10)
    every = queries.double() @ passages.double().T
    np.testing.assert_allclose(scores, every.sort(dim=1, descending=True).values[:, :10].numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every.numpy(), rows, axis=1), scores, rtol=1e-5)
