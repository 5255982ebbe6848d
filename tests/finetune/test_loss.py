"""Losses against NumPy, query by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.finetune.loss import contrastive_loss, in_batch_loss, matryoshka_loss

QUERIES, PASSAGES, SIZE = 7, 11, 5


def vectors(*shape: int) -> np.ndarray:
    found = np.random.default_rng(sum(shape)).normal(size=shape)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def surprise(right: float, others: list[float], temperature: float) -> float:
    """-log of the share that the right one's score has."""
    scores = np.array([right, *others]) / temperature
    return float(np.log(np.exp(scores - scores[0]).sum()))


@pytest.mark.parametrize("temperature", [0.02, 1.0])
@pytest.mark.parametrize("per_query", [2, 5])
def test_each_query_against_its_own_passages(temperature: float, per_query: int) -> None:
    queries, passages = vectors(QUERIES, SIZE), vectors(QUERIES, per_query, SIZE)
    expected = [
        surprise(float(q @ own[0]), [float(q @ other) for other in own[1:]], temperature)
        for q, own in zip(queries, passages, strict=True)
    ]
    found = contrastive_loss(torch.tensor(queries), torch.tensor(passages), temperature=temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.02, 1.0])
def test_in_batch_negatives_leave_out_what_is_known_to_answer(temperature: float) -> None:
    draw = np.random.default_rng(1)
    queries, passages = vectors(QUERIES, SIZE), vectors(PASSAGES, SIZE)
    positives = draw.integers(PASSAGES, size=QUERIES)
    known = draw.random((QUERIES, PASSAGES)) < 0.3
    known[np.arange(QUERIES), positives] = draw.random(QUERIES) < 0.5
    expected = []
    for query, right, skip in zip(queries, positives, known, strict=True):
        others = [float(query @ passages[row]) for row in range(PASSAGES) if row != right and not skip[row]]
        expected.append(surprise(float(query @ passages[right]), others, temperature))
    found = in_batch_loss(
        torch.tensor(queries),
        torch.tensor(passages),
        torch.tensor(positives),
        torch.tensor(known),
        temperature=temperature,
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_batch_in_which_everything_answers_has_no_loss() -> None:
    known = torch.ones(3, 4, dtype=torch.bool)
    queries, passages = torch.tensor(vectors(3, SIZE)), torch.tensor(vectors(4, SIZE))
    found = in_batch_loss(queries.requires_grad_(), passages, torch.tensor([0, 1, 2]), known, temperature=0.05)
    assert found.tolist() == [0.0, 0.0, 0.0]
    found.sum().backward()
    assert queries.grad.abs().max() == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_cut_vectors_have_a_loss_of_their_own(normalize: bool) -> None:
    queries, passages = vectors(QUERIES, SIZE), vectors(QUERIES, 3, SIZE)
    expected = []
    for query, own in zip(queries, passages, strict=True):
        losses = []
        for size in (SIZE, 4, 2):
            short = [vector[:size] / (np.linalg.norm(vector[:size]) if normalize else 1) for vector in (query, *own)]
            scores = [float(short[0] @ other) for other in short[1:]]
            losses.append(surprise(scores[0], scores[1:], 0.1))
        expected.append(np.mean(losses))
    found = matryoshka_loss(
        lambda q, p: contrastive_loss(q, p, temperature=0.1),
        torch.tensor(queries),
        torch.tensor(passages),
        [4, 2],
        normalize=normalize,
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
