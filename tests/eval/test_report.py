from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from components.core.encoder.config import EncoderConfig
from components.core.reports.html import element, escape, page, quoted
from components.core.retrieval.beir_data import BeirData
from components.eval.component import EvalConfig
from components.eval.gate import decide_gate
from components.eval.metrics import Evaluation, measure
from components.eval.report import build_report

pytestmark = pytest.mark.slow

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></svg><script src=//evil.example/x.js></script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "<!-- --><![CDATA[ ]]> &lt;b&gt; &amp; &#60;script&#62;",
    "javascript:alert(1) {{7*7}} ${7*7}",
    "عربى \u202eright to left\u202c, 日本語, emoji 🦜, combining a\u0301",
    "line\u2028separator\x85next\ttab",
    "word " * 5000,
    "<" * 3000,
]


class Parsed(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def report_of(texts: list[str], *, level: str = "passage") -> str:
    corpus = {f"{n}{text[:40]}": text for n, text in enumerate(texts)}
    names = list(corpus)
    queries = {f"q{n}{text[:40]}": text for n, text in enumerate(texts)}
    qrels = {query: {names[n]: 1} for n, query in enumerate(queries)}
    data = BeirData(corpus, {name: name for name in corpus}, queries, qrels, {}, level)
    first = {query: {names[0]: 1.0, names[n]: 0.5} for n, query in enumerate(queries)}
    right = {query: {names[n]: 1.0} for n, query in enumerate(queries)}
    runs = {"base": first, "finetuned": right, "nim": right, "bm25": first}
    evaluation = Evaluation(data, runs, {name: measure(qrels, run, [1, 10]) for name, run in runs.items()})
    config = EvalConfig(eval_nim=True, nim_model=texts[0], nim_url=texts[1 % len(texts)])
    encoder = EncoderConfig(base_model=texts[0], query_prefix=texts[-1][:50])
    gate = decide_gate(config, evaluation.scores, len(queries))
    return build_report(config, encoder, {"test": evaluation, "golden": evaluation}, {}, gate, [1, 10])


@pytest.mark.parametrize("level", ["passage", "document"])
def test_hostile_texts_stay_texts(level: str) -> None:
    parsed = Parsed(report_of(HOSTILE, level=level))
    assert not parsed.open
    assert not {"script", "img", "iframe", "object", "link", "a", "form", "b"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("href", "src", "style")]
    shown = "".join(parsed.texts)
    for text in HOSTILE[1:]:
        assert text.replace("\x85", "\ufffd")[:200].rstrip() in shown, text[:40]
    assert len(shown) < 60_000


def test_nothing_is_fetched_and_scripts_are_forbidden() -> None:
    report = report_of(["plain"])
    assert report.startswith("<!doctype html>")
    policy = dict(Parsed(report).attributes)["content"], re.findall(r'content="(default-src[^"]*)"', report)
    assert policy[1] == ["default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;"]
    assert not re.search(r"https?://|url\(|@import", report.replace("http://localhost:8000", ""))


def test_equal_input_gives_equal_bytes() -> None:
    assert report_of(HOSTILE) == report_of(HOSTILE)


def test_the_figures_are_there() -> None:
    shown = " ".join(Parsed(report_of(["one", "two", "three"])).texts)
    # Base finds the first of three queries at rank 1 and the others at rank 2: nDCG (1 + 2 / log2(3)) / 3.
    for figure in ("0.7540", "+0.2460", "+32.6 %", "Quality gate not passed", "min_eval_queries asks for 20"):
        assert figure in shown, figure


def test_a_model_alone_has_no_comparison() -> None:
    data = BeirData({"p": "text"}, {"p": "p"}, {"q": "query"}, {"q": {"p": 1}})
    run = {"q": {"p": 1.0}}
    evaluation = Evaluation(data, {"finetuned": run}, {"finetuned": measure(data.qrels, run, [10])})
    config = EvalConfig(eval_base=False)
    report = build_report(
        config, EncoderConfig(), {"test": evaluation}, {}, decide_gate(config, evaluation.scores, 1), [10]
    )
    shown = " ".join(Parsed(report).texts)
    assert "base model was not evaluated" in shown
    assert "wins and losses" not in shown


def test_elements_escape_everything_but_elements() -> None:
    inner = element("b", "<&>")
    assert element("p", inner, "\x00", title='"<') == '<p title="&quot;&lt;"><b>&lt;&amp;&gt;</b>\ufffd</p>'
    assert escape(escape("<")) == "&lt;"
    assert Parsed(page("</title><script>", "text")).tags.count("script") == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [("short", "short"), ("two words", "two …"), ("unbreakable", "unbreaka …"), (" unbreakable", " unbreak …")],
)
def test_long_texts_are_cut_after_a_word(text: str, shown: str) -> None:
    assert quoted(text, 8) == f"<bdi>{shown}</bdi>"


def test_kinds_of_query_stand_in_the_report_as_text() -> None:
    kinds = ["<b>lookup</b>", "multi_hop"]
    data = BeirData(
        {"p": "passage"},
        {"p": "p"},
        {"q0": "one", "q1": "two"},
        {"q0": {"p": 1}, "q1": {"p": 1}},
        {f"q{n}": {"query_type": kind} for n, kind in enumerate(kinds)},
    )
    run = {query: {"p": 1.0} for query in data.queries}
    evaluation = Evaluation(
        data, {"base": run, "finetuned": run}, {s: measure(data.qrels, run, [10]) for s in ("base", "finetuned")}
    )
    config = EvalConfig()
    gate = decide_gate(config, evaluation.scores, 2)
    parsed = Parsed(build_report(config, EncoderConfig(), {"test": evaluation}, {}, gate, [10]))
    assert {"Test set: NDCG@10 by kind of query", *kinds} <= set(parsed.texts)
