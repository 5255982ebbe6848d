"""Nearly equal documents are found, different ones are not, and the share is Jaccard's."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from components.core.retrieval.near_duplicates import NearDuplicates
from components.sdg.component import SdgConfig
from tests.sdg.reading import read_directory


def words(seed: int, count: int) -> list[str]:
    random_ = random.Random(seed)
    return ["".join(random_.choices("abcdefghij", k=6)) for _ in range(count)]


def jaccard(left: list[str], right: list[str]) -> float:
    def phrases(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[start : start + 5]) for start in range(len(text) - 4)}

    return len(phrases(left) & phrases(right)) / len(phrases(left) | phrases(right))


@pytest.mark.parametrize("seed", range(40))
def test_decides_by_jaccards_share(seed: int) -> None:
    random_ = random.Random(seed)
    left = words(seed, 400)
    right = list(left)
    for place in random_.sample(range(400), random_.randint(1, 9)):
        right[place] = "changed"
    share = jaccard(left, right)
    assert share > 0.75  # below it is none of this program's business
    for threshold in (share - 0.01, share + 0.01):
        near = NearDuplicates(threshold, words=5)
        assert not near.is_near_duplicate(" ".join(left))
        assert near.is_near_duplicate(" ".join(right)) == (threshold < share)


def test_different_texts_of_one_template_stay() -> None:
    near = NearDuplicates(0.9, words=5)
    template = "The machine {} is cleaned by the operator {} before every shift with {} and the cover stays closed."
    texts = [template.format(*words(seed, 3)) for seed in range(200)]
    assert not any(near.is_near_duplicate(text) for text in texts)


def test_texts_without_blanks_are_compared_by_character() -> None:
    text = "検索のためのデータを準備する。文書はどこにあるか。" * 3 + "".join(chr(0x4E00 + n) for n in range(200))
    near = NearDuplicates(0.8, words=5)
    assert not near.is_near_duplicate(text)
    assert near.is_near_duplicate(text + "終わり。")
    assert not near.is_near_duplicate("".join(chr(0x5E00 + n) for n in range(200)))


def test_only_one_of_near_duplicates_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    text = words(1, 300)
    for number, changed in enumerate(("", "draft", "final version")):
        (tmp_path / f"{number}.txt").write_text(" ".join([*text, changed]))
    (tmp_path / "other.txt").write_text(" ".join(words(2, 300)))
    found = read_directory(tmp_path, SdgConfig())
    assert [document.source_id for document in found.documents] == ["0.txt", "other.txt"]
    assert found.skipped == {"nearly the same text as another file": 2}
    assert len(read_directory(tmp_path, SdgConfig(near_duplicate_threshold=1)).documents) == 4


def test_order_of_reading_is_order_of_paths(tmp_path: Path) -> None:
    names = ["b/x.txt", "a.txt", "c.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(" ".join([*words(1, 300), name]))
    assert [document.source_id for document in read_directory(tmp_path, SdgConfig()).documents] == ["a.txt"]
    assert all(left < right for left, right in pairwise(sorted(names)))
