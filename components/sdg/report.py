"""What was generated, as a page for a person: how good, of which kinds, what was left out, and what it cost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components import __version__
from components.core.history import RunContext
from components.core.reports.chart import bar_chart
from components.core.reports.html import Markup, element, facts, page, quoted, section, table, tiles
from components.sdg.component import SdgConfig
from components.sdg.generation import Generated
from components.sdg.llm.budget import cost_of
from components.sdg.llm.prompts import quotas
from components.sdg.read.corpus import Corpus
from components.sdg.source_shares import by_source

SAMPLES = 10
TEXT_CHARACTERS = 400
LISTED_DOCUMENTS = 20
_SCORES = ("overall", "relevance", "accuracy", "context_support", "clarity")
_BEST_SCORE = 10
_COLOUR = 2


def build_report(config: SdgConfig, records: Sequence[dict[str, Any]], read: Corpus, made: Generated) -> str:
    """The page; equal input gives equal bytes."""
    pairs = [pair for record in records for pair in record["deduplicated_qa_pairs"]]
    scores = [score for record in records for score in (record["qa_evaluations"] or {}).get("evaluations", ())]
    return page(
        "Generation report",
        element("h1", "Generated questions"),
        element("p", _about(config), class_="soft"),
        _headline(records, pairs, scores, config, made),
        _scores(scores),
        _kinds(pairs, config),
        _sources(records, config),
        _left_out(records, read, made),
        _cost(config, made),
        _samples(records, config),
        section(
            "What was generated from what",
            facts(
                [
                    ("documents read", len(read.documents)),
                    ("passages", sum(len(record["chunks"]) for record in records)),
                    ("release", __version__),
                    *((name, getattr(config, name)) for name in ("generator", "num_pairs", "seed")),
                ]
            ),
        ),
    )


def unchanged_report(run: RunContext, runs: Sequence[str]) -> str:
    """The page of a run that had nothing to do; ``runs`` are the last ones, newest first."""
    return page(
        "Generation report",
        element("h1", "Nothing new"),
        element(
            "p",
            f"The {run.corpus.documents:,} documents and the settings of sdg are those of the run "
            f"{run.corpus.unchanged_since}: nothing was generated, paid or trained. With skip_unchanged=false a run "
            f"goes on all the same.",
        ),
        section("Recurring runs, newest first", element("ul", *(element("li", one) for one in runs))),
    )


def _about(config: SdgConfig) -> str:
    if config.generator == "offline":
        return f"by {config.offline_method} heuristics, without an LLM: not for claims of quality"
    return f"by {config.qa_generation_model}, judged by {config.quality_judge_model}"


def _headline(
    records: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]],
    scores: Sequence[dict[str, Any]],
    config: SdgConfig,
    made: Generated,
) -> Markup:
    with_pairs = sum(bool(record["deduplicated_qa_pairs"]) for record in records)
    items: list[tuple[str, object, str]] = [
        ("Questions", f"{len(pairs):,}", f"{len(pairs) / len(records):.1f} for each document or bundle"),
        ("Documents with questions", f"{with_pairs:,}", f"of {len(records):,}"),
    ]
    if scores:
        overall = [score["overall"]["score"] for score in scores]
        items.append(
            ("Mean overall score", f"{sum(overall) / len(overall):.2f}", f"{min(overall):g} to {max(overall):g}")
        )
    cost = cost_of(made.tokens, config)
    if made.tokens:
        total = sum(used.prompt + used.completion for used in made.tokens.values())
        items.append(("Tokens", f"{total:,}", "cost not known: no prices" if cost is None else f"cost {cost:,.2f}"))
    return tiles(*items)


def _scores(scores: Sequence[dict[str, Any]]) -> Markup:
    if not scores:
        return Markup("")
    charts = [_histogram(name, [score[name]["score"] for score in scores]) for name in _SCORES]
    note = "Share of questions by the judge's score from 1 to 10; half scores count for the whole below."
    return section("Scores", element("p", note, class_="soft"), element("div", *charts, class_="charts"))


def _histogram(name: str, values: Sequence[float]) -> Markup:
    counts = Counter(int(value) for value in values)
    groups = range(1, _BEST_SCORE + 1)
    title = f"{name.replace('_', ' ').capitalize()}: mean {sum(values) / len(values):.2f}"
    shares = [counts[group] / len(values) for group in groups]
    return bar_chart(title, [str(group) for group in groups], [("questions", _COLOUR)], [shares], fitted=True)


def _kinds(pairs: Sequence[dict[str, Any]], config: SdgConfig) -> Markup:
    """How many questions there are of each kind, beside what the LLM was asked for."""
    asked: dict[str, Mapping[str, int]] = {}
    if config.generator == "llm":
        asked = {
            "query_type": quotas(config.num_pairs, config.query_counts),
            "reasoning_type": quotas(config.num_pairs, config.reasoning_counts),
            "question_style": quotas(config.num_pairs, config.question_styles),
        }
    rows: list[list[object]] = []
    for name in ("query_type", "reasoning_type", "question_style", "hop_count", "question_complexity"):
        found = Counter(str(pair[name]) for pair in pairs if name in pair)
        wanted = asked.get(name, {})
        for kind in sorted(found.keys() | wanted.keys()):
            share = f"{wanted.get(kind, 0) / config.num_pairs:.0%}" if wanted else "–"
            rows.append([name.replace("_", " "), kind, f"{found[kind]:,}", _percent(found[kind], len(pairs)), share])
    return section(
        "Kinds of question", table(["Kind", "Value", "Questions", "Share", "Asked for"], rows, text_columns=2)
    )


def _sources(records: Sequence[dict[str, Any]], config: SdgConfig) -> Markup:
    """What each of several sources gave."""
    if len(config.sources) < 2:
        return Markup("")
    found = by_source(records, config)
    pairs = sum(one["pairs"] for one in found.values())
    rows: list[list[object]] = [
        [
            name,
            f"{one['documents']:,}",
            f"{one['pairs']:,}",
            _percent(one["pairs"], pairs),
            one["weight"] or "all of it",
        ]
        for name, one in found.items()
    ]
    return section("Sources", table(["Source", "Documents", "Questions", "Share", "Weight"], rows))


def _left_out(records: Sequence[dict[str, Any]], read: Corpus, made: Generated) -> Markup:
    """Questions, documents and files that are not in the data, by reason."""
    rows: list[list[object]] = [
        ["questions", reason, f"{count:,}"] for reason, count in made.totals.get("rejected_pairs", {}).items()
    ]
    empty = [record["source_id"] for record in records if not record["deduplicated_qa_pairs"]]
    reasons = Counter(str(made.failures.get(name, "its passages are too short")) for name in empty)
    rows += [["documents", quoted(reason, TEXT_CHARACTERS), f"{count:,}"] for reason, count in sorted(reasons.items())]
    rows += [["files", reason, f"{count:,}"] for reason, count in read.skipped.items()]
    if not rows:
        return section("Left out", element("p", "Nothing."))
    names: Iterable[object] = ()
    if empty:
        more = f" and {len(empty) - LISTED_DOCUMENTS} more" if len(empty) > LISTED_DOCUMENTS else ""
        listed = ", ".join(empty[:LISTED_DOCUMENTS]) + more
        names = [element("p", "Documents without questions: ", quoted(listed))]
    return section("Left out", table(["What", "Why", "How many"], rows, text_columns=2), *names)


def _cost(config: SdgConfig, made: Generated) -> Markup:
    """Tokens of the answers that the data is made of, whichever run paid for them."""
    if not made.tokens:
        return Markup("")
    rows: list[list[object]] = []
    for model, used in sorted(made.tokens.items()):
        cost = cost_of({model: used}, config)
        rows.append([model, f"{used.prompt:,}", f"{used.completion:,}", "–" if cost is None else f"{cost:,.4f}"])
    return section("Tokens and cost", table(["Model", "Prompt tokens", "Completion tokens", "Cost"], rows))


def _samples(records: Sequence[dict[str, Any]], config: SdgConfig) -> Markup:
    """Questions drawn at random, with what answers them."""
    places = [(record, number) for record in records for number in range(len(record["deduplicated_qa_pairs"]))]
    drawn = random.Random(config.seed).sample(range(len(places)), min(SAMPLES, len(places)))
    return section(f"{len(drawn)} questions drawn at random", *(_sample(*places[place]) for place in sorted(drawn)))


def _sample(record: dict[str, Any], number: int) -> Markup:
    pair = record["deduplicated_qa_pairs"][number]
    evaluations = (record["qa_evaluations"] or {}).get("evaluations")
    texts = {chunk["chunk_id"]: chunk["text"] for chunk in record["chunks"]}
    items: list[tuple[str, object]] = []
    if "answer" in pair:
        items.append(("answer", quoted(pair["answer"], TEXT_CHARACTERS)))
    named = dict.fromkeys(pair.get("segment_ids", ()))
    items += [(f"passage {n}", quoted(texts[n], TEXT_CHARACTERS)) for n in named if n in texts]
    items.append(("document", quoted(", ".join(record["file_name"]), TEXT_CHARACTERS)))
    if evaluations:
        verdict = evaluations[number]["overall"]
        items.append((f"judge: {verdict['score']:g}", quoted(verdict["assessment"], TEXT_CHARACTERS)))
    return element("div", element("h3", quoted(pair["question"], TEXT_CHARACTERS)), facts(items))


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
