"""Reports show text from anywhere as text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.reports.html import element, facts, page, quoted, section, table, tiles

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</td></table><iframe>",
    "' onclick='x",
    "&lt;b>",
]


class Reader(HTMLParser):
    """Tags, attributes and text as a browser's tokenizer finds them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.values: list[str | None] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)
        self.values += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("text", ATTACKS)
def test_text_stays_text_wherever_it_stands(text: str) -> None:
    calm = "calm"

    def built(word: str) -> str:
        body = [element("p", word, title=word), quoted(word), section(word, word), facts([(word, word)])]
        return page(word, *body, table([word], [[word]]), tiles((word, word, word)))

    found, expected = Reader(built(text)), Reader(built(calm))
    assert found.tags == expected.tags
    assert found.attributes == expected.attributes | {"title": text}
    assert [text if t == calm else t for t in expected.texts] == found.texts


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=80))
def test_any_text_comes_back_unchanged(text: str) -> None:
    assert "".join(Reader(element("p", text, title=text)).texts) == text
    assert Reader(element("p", title=text)).attributes["title"] == text


def test_characters_that_html_forbids_are_replaced() -> None:
    found = "".join(Reader(page("t", element("p", "a\x00b\x1bc\ud800d"))).texts)
    assert "a\ufffdb\ufffdc\ufffdd" in found
    found.encode("utf-8")


def test_the_page_fetches_and_runs_nothing() -> None:
    text = page("Report", element("p", "text"))
    found = Reader(text)
    assert "default-src 'none'; style-src 'unsafe-inline'" in found.values
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert not {"src", "href"} & set(found.attributes)
    assert "url(" not in text


def test_long_text_is_cut_after_a_word() -> None:
    assert Reader(quoted("one two three four", 9)).texts == ["one two …"]
    assert Reader(quoted("one two", 7)).texts == ["one two"]
