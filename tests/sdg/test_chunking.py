"""Passages hold every word of the document once, and never more than they may."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from components.sdg.passages.chunking import chunk_text, split_sentences

PROSE = st.lists(st.sampled_from(["word", "End.", "Why?", "e.g.", "\n\n", "“Yes.”", "数据。", "Größe"]), max_size=80)


@settings(max_examples=60, deadline=None)
@given(PROSE.map(" ".join), st.integers(1, 6), st.integers(1, 30))
def test_every_word_is_in_exactly_one_passage(text: str, sentences: int, max_words: int) -> None:
    chunks = chunk_text(text, sentences=sentences, max_words=max_words)
    assert "".join(part.text for part in chunks).replace(" ", "") == "".join(text.split())
    assert all(part.word_count == len(part.text.split()) <= max_words for part in chunks)
    assert all(part.sentence_count <= sentences for part in chunks)


def test_offsets_are_words_of_the_document() -> None:
    text = "One two. Three four five. Six.\n\nSeven eight nine ten."
    words = text.split()
    chunks = chunk_text(text, sentences=2, max_words=50)
    assert [part.text for part in chunks] == [" ".join(words[part.start : part.end]) for part in chunks]
    assert [part.chunk_id for part in chunks] == [1, 2]


def test_text_without_spaces_is_cut() -> None:
    chunks = chunk_text("数" * 5000, sentences=5, max_words=100)
    assert max(len(part.text) for part in chunks) <= 600


def test_sentences_end_where_readers_see_it() -> None:
    assert split_sentences("Version 3.11 is out. Is it? Yes!") == ["Version 3.11 is out.", "Is it?", "Yes!"]
    assert split_sentences("“Is it?” Yes. (It is.) So?") == ["“Is it?”", "Yes.", "(It is.)", "So?"]
    assert split_sentences("これは文です。次の文です。") == ["これは文です。", "次の文です。"]
