"""No document and no shared text lies on two sides of a split."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.prep.read.records import QueryExample, Records
from tests.prep.settings import split


def fold(text: str) -> str:
    return " ".join(text.lower().split())


def hostile(seed: int) -> Records:
    """Documents that share passages, also in other case and spacing, and questions asked of several documents."""
    rng = random.Random(seed)
    texts = [f"{'The  ' if n % 2 else 'the '}valve {n // 2}" for n in range(60)]
    records = Records()
    for document in (f"document {n}" for n in range(rng.randint(2, 30))):
        own = [*rng.sample(texts, rng.randint(1, 3)), f"Only in {document}"]
        for text in own:
            records.add_passage(text, document)
        for _ in range(rng.randint(0, 4)):
            question = f"{rng.choice(['what', 'What '])} is {rng.randint(0, 40)}?"
            records.examples.append(QueryExample(question, tuple(rng.sample(own, 1)), document))
    return records


@pytest.mark.parametrize("seed", range(50))
def test_documents_texts_and_questions_never_cross(seed: int) -> None:
    records = hostile(seed)
    parts = split(records, train_ratio=0.6, val_ratio=0.2, seed=seed)
    sides = [parts.train, parts.val, parts.test]
    documents = [{e.document for e in side} for side in sides]
    texts = [{fold(t) for t, holders in records.passages.items() if set(holders) & part} for part in documents]
    answers = [{fold(text) for e in side for text in e.positives} for side in sides]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not documents[first] & documents[second]
        assert not answers[first] & texts[second]
        assert not texts[first] & answers[second]
    seen = {fold(text) for text in parts.training_passages}
    assert {fold(text) for e in parts.train for text in e.positives} <= seen
    assert not seen & (texts[1] | texts[2])
    asked = {fold(e.query) for e in parts.train}
    assert not asked & {fold(e.query) for e in (*parts.val, *parts.test)}
    assert not {fold(e.query) for e in parts.val} & {fold(e.query) for e in parts.test}
    assert sum(map(len, sides)) + sum(parts.dropped.values()) == len(records.examples)


@pytest.mark.parametrize("seed", range(20))
def test_what_the_golden_set_asks_only_the_test_set_may_ask_too(seed: int) -> None:
    records = hostile(seed)
    golden = frozenset(f"WHAT  is {number}?" for number in range(0, 40, 3))
    parts = split(records, train_ratio=0.6, val_ratio=0.2, seed=seed, golden=golden)
    without = split(records, train_ratio=0.6, val_ratio=0.2, seed=seed)
    asked = {fold(question) for question in golden}
    for side, all_of_it in ((parts.train, without.train), (parts.val, without.val)):
        assert not {fold(example.query) for example in side} & asked
        kept = [example for example in all_of_it if fold(example.query) not in asked]
        assert [example for example in kept if example not in side] == []
    assert all(example in parts.test for example in without.test)
    sides = [parts.train, parts.val, parts.test]
    assert sum(map(len, sides)) + sum(parts.dropped.values()) == len(records.examples)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(seed: int, order: random.Random) -> None:
    records = hostile(seed)
    shuffled = Records()
    for text, holders in order.sample(list(records.passages.items()), len(records.passages)):
        for document in order.sample(holders, len(holders)):
            shuffled.add_passage(text, document)
    shuffled.examples.extend(order.sample(records.examples, len(records.examples)))
    ratios = {"train_ratio": 0.8, "val_ratio": 0.0, "seed": 7}
    assert split(shuffled, **ratios) == split(records, **ratios)


def test_shares_are_those_asked_for_and_the_seed_decides_which() -> None:
    records = Records()
    for n in range(100):
        records.add_passage(f"passage {n}", f"document {n}")
        records.examples.append(QueryExample(f"question {n}", (f"passage {n}",), f"document {n}"))
    parts = split(records, train_ratio=0.7, val_ratio=0.1, seed=1)
    assert [len(parts.train), len(parts.val), len(parts.test)] == [70, 10, 20]
    assert split(records, train_ratio=0.7, val_ratio=0.1, seed=2).train != parts.train


def dated(count: int) -> Records:
    records = Records()
    for n in range(count):
        records.add_passage(f"passage {n}", f"document {n}")
        records.examples.append(QueryExample(f"question {n}", (f"passage {n}",), f"document {n}"))
        records.times[f"document {n}"] = float(n)
    return records


def numbers(side: list[QueryExample]) -> list[int]:
    return sorted(int(example.document.split()[1]) for example in side)


def test_by_time_the_oldest_train_and_the_newest_test() -> None:
    parts = split(dated(50), train_ratio=0.7, val_ratio=0.1, seed=1, by_time=True)
    assert numbers(parts.train) == list(range(35))
    assert numbers(parts.val) == list(range(35, 40))
    assert numbers(parts.test) == list(range(40, 50))


def test_by_time_a_group_is_as_new_as_its_newest_document() -> None:
    records = dated(50)
    records.groups["series"] = {"document 0", "document 49"}
    parts = split(records, train_ratio=0.8, val_ratio=0.0, seed=1, by_time=True)
    assert 0 in numbers(parts.test)
    del records.times["document 7"]
    with pytest.raises(InputError, match="document 7' has no time: give every record the field split_time_field"):
        split(records, train_ratio=0.8, val_ratio=0.0, seed=1, by_time=True)


def test_named_groups_stay_together() -> None:
    records = dated(60)
    for n in range(60):
        records.groups.setdefault(f"team={n % 12}", set()).add(f"document {n}")
    parts = split(records, train_ratio=0.5, val_ratio=0.25, seed=1)
    teams = [{n % 12 for n in numbers(side)} for side in (parts.train, parts.val, parts.test)]
    assert [len(side) for side in teams] == [6, 3, 3]
    assert len(set.union(*teams)) == 12


@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("documents", [3, 4, 7])
def test_every_side_gets_a_document_and_a_large_one_trains(documents: int, by_time: bool) -> None:
    records = dated(documents)
    records.examples += [QueryExample(f"more {n}", ("passage 0",), "document 0") for n in range(100)]
    parts = split(records, train_ratio=0.8, val_ratio=0.1, seed=3, by_time=by_time)
    assert parts.train and parts.val and parts.test
    assert 0 in numbers(parts.train)


def test_a_given_negative_of_a_held_out_document_is_left_out() -> None:
    records = dated(10)
    parts = split(records, train_ratio=0.8, val_ratio=0.0, seed=1)
    held, trained = parts.test[0].positives[0], parts.train[0]
    place = records.examples.index(trained)
    records.examples[place] = QueryExample(trained.query, trained.positives, trained.document, (held, "own"))
    records.add_passage("own", trained.document)
    again = split(records, train_ratio=0.8, val_ratio=0.0, seed=1)
    assert [e.negatives for e in again.train if e.query == trained.query] == [("own",)]
    assert again.withheld_negatives == 1
