"""Clusters are those of comparing every pair of texts."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from components.prep.split.duplicates import cluster_duplicates
from tests.core.similarity import jaccard, shingles


def edited(words: list[str], rng: random.Random) -> list[str]:
    """The words with up to a fifth of them replaced, dropped or doubled."""
    words = list(words)
    for _ in range(rng.randint(0, len(words) // 5)):
        place = rng.randrange(len(words))
        words[place : place + 1] = rng.choice([[], [f"new{rng.random()}"], words[place : place + 1] * 2])
    return words


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_clusters_are_the_components_of_comparing_all_pairs(threshold: float) -> None:
    rng = random.Random(threshold)
    texts: list[str] = []
    for _ in range(35):
        words = [f"word{rng.randrange(300)}" for _ in range(rng.randint(1, 60))]
        texts += [" ".join(edited(words, rng)) for _ in range(4)]
    texts = sorted(set(texts))
    alike = np.array([[jaccard(a, b) >= threshold for b in texts] for a in texts])
    count, expected = connected_components(alike, directed=False)
    clusters = cluster_duplicates(texts, threshold)
    assert len(set(clusters.values())) == count
    assert len({(clusters[text], label) for text, label in zip(texts, expected.tolist(), strict=True)}) == count
    assert count < len(texts) or threshold > 0.9


@pytest.mark.parametrize("threshold", [0.6, 0.7])
def test_many_that_share_boilerplate_are_joined_as_comparing_all_pairs_does(threshold: float) -> None:
    """Half of each text is the same: all fall into the same buckets, and some are similar enough."""
    rng = random.Random(1)
    boilerplate = [f"notice{n}" for n in range(60)]
    texts: list[str] = []
    for _ in range(60):
        own = [f"word{rng.randrange(40)}" for _ in range(40)]
        texts += [" ".join(boilerplate + edited(own, rng)) for _ in range(4)]
    sets = [shingles(text) for text in texts]
    alike = np.array([[len(a & b) >= threshold * len(a | b) for b in sets] for a in sets])
    count, expected = connected_components(alike, directed=False)
    clusters = cluster_duplicates(texts, threshold)
    assert 1 < count < len(texts)
    assert len(set(clusters.values())) == count
    assert len({(clusters[text], label) for text, label in zip(texts, expected.tolist(), strict=True)}) == count


@pytest.mark.slow
def test_ten_thousand_pages_of_one_template_take_seconds() -> None:
    """Comparing them one by one takes minutes. CPU time: other programs do not count."""
    template = [f"word{n}" for n in range(120)]
    started = time.process_time()
    texts = [" ".join([*template, f"page{n}"]) for n in range(10_000)]
    assert len(set(cluster_duplicates(texts, 0.8).values())) == 1
    assert time.process_time() - started < 30


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_case_space_and_encoding_make_no_difference(threshold: float | None) -> None:
    texts = ["Der  große\tTest", "der große test", "ﬁt the valve", "fit the valve", "!?", "fit the pump"]
    clusters = cluster_duplicates(texts, threshold)
    assert clusters[texts[0]] == clusters[texts[1]]
    assert clusters[texts[2]] == clusters[texts[3]]
    assert len({clusters[text] for text in texts}) == 4


def test_scripts_without_blanks_are_compared_by_character() -> None:
    one = "埋め込みモデルは文書を検索するためのベクトルを作る。学習には良い負例が必要である。"
    other = one.replace("良い", "悪い")
    clusters = cluster_duplicates([one, other, "全く別の文章であり、何の関係もない話をしている。"], 0.8)
    assert clusters[one] == clusters[other]
    assert len(set(clusters.values())) == 2


def test_one_number_apart_is_another_question() -> None:
    questions = [f"How do I fit valve {n}?" for n in range(20)]
    assert len(set(cluster_duplicates(questions, 0.8).values())) == 20


def test_many_copies_of_one_footer_are_one_cluster() -> None:
    footer = " ".join(f"word{n}" for n in range(40))
    texts = [f"{footer} page{n}" for n in range(300)]
    assert len(set(cluster_duplicates(texts, 0.8).values())) == 1
