"""The report shows what was generated, and hostile documents cannot do anything in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.__main__ import main
from tests.sdg.llm_server import LlmServer, llm_server

HOSTILE = '<script>alert("owned")</script><img src=x onerror=alert(1)> </table> & "quoted" \u202e '
MODEL, EMBEDDER = "nvidia/nemotron-3-nano-30b-a3b", "nvidia/llama-3.2-nv-embedqa-1b-v2"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-report")
    with llm_server() as running:
        yield running


class Page(HTMLParser):
    """Elements and text of a page; fails on what a browser would run or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags = "", set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert tag not in ("script", "img", "iframe", "object", "link", "form", "a")
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def report(server: LlmServer, tmp_path: Path, *settings: str) -> str:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(12):
        text = " ".join(f"{HOSTILE}Sentence {part} of {number} about valve{number}x{part}." for part in range(12))
        (corpus / f"{number:02}<b>.txt").write_text(text, encoding="utf-8")
    (corpus / "empty.txt").write_text("")
    arguments = ["sdg", "--work", str(tmp_path), "--corpus", str(corpus), f"llm_base_url={server.url}", *settings]
    assert main(arguments) == 0
    return (tmp_path / "generation_report.html").read_text(encoding="utf-8")


def test_shows_scores_kinds_rejections_cost_and_ten_samples(server: LlmServer, tmp_path: Path) -> None:
    def wrong_first(step: str, text: str) -> str:
        if step != "pairs":
            return text
        answer = json.loads(text)
        answer["pairs"][0]["segment_ids"] = [99]
        return json.dumps(answer)

    server.edit = wrong_first
    prices = f"prices={{{MODEL}: {{prompt: 1000, completion: 1000}}, {EMBEDDER}: {{prompt: 1}}}}"
    html = report(server, tmp_path, prices)
    page = Page(html)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in unescape(html)
    lines = [json.loads(line) for line in (tmp_path / "qa_pairs" / "qa_pairs.jsonl").read_text().splitlines()]
    scores = [one["overall"]["score"] for line in lines for one in line["qa_evaluations"]["evaluations"]]
    assert f"Overall: mean {sum(scores) / len(scores):.2f}" in page.text
    assert "names unknown segments" in page.text
    assert "shorter than min_text_length" in page.text
    assert re.search(r"query type\s*contextual", page.text)
    metrics = json.loads((tmp_path / "sdg_metrics.json").read_text())["metrics"]
    assert f"{metrics['completion_tokens']:,}" in page.text
    assert f"cost {metrics['cost']:,.2f}" in page.text
    questions = {pair["question"] for line in lines for pair in line["deduplicated_qa_pairs"]}
    assert any(question in page.text for question in questions)
    assert len(re.findall("judge: ", page.text)) == 10
    assert 'alert("owned")' in page.text  # shown, not run


def test_names_documents_without_questions_and_why(server: LlmServer, tmp_path: Path) -> None:
    server.fault = lambda n, path, body: (413, {}, "") if "valve3x" in str(body) else None
    page = Page(report(server, tmp_path, "min_success=0.5"))
    assert "Documents without questions: 03<b>.txt" in page.text
    assert "HTTP 413" in page.text


def test_the_offline_report_says_what_it_is(server: LlmServer, tmp_path: Path) -> None:
    page = Page(report(server, tmp_path, "generator=offline"))
    assert "not for claims of quality" in page.text
    assert not server.requests
