"""Shows what was generated as a page: how good, of which kinds, what was left out, and what it cost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from components import __version__
from components.core.history import RunContext
from components.core.reports.chart import bar_chart
from components.core.reports.html import Markup, element, facts, page, quoted, section, table, tiles
from components.sdg.component import SdgConfig
from components.sdg.generation import GenerationResult
from components.sdg.llm.budget import compute_cost
from components.sdg.llm.prompts import compute_quotas
from components.sdg.read.corpus import Corpus
from components.sdg.records import PairScores, QaPair, QaRecord
from components.sdg.source_shares import count_by_source

SAMPLES = 10
TEXT_CHARACTERS = 400
LISTED_DOCUMENTS = 20
_SCORES = ("overall", "relevance", "accuracy", "context_support", "clarity")
_BEST_SCORE = 10
_COLOUR = 2


def build_report(config: SdgConfig, corpus: Corpus, result: GenerationResult) -> str:
    """Return the page; equal input gives equal bytes."""
    records = result.records
    pairs = [pair for record in records for pair in record.pairs]
    scores = [scores for record in records for scores in record.scores or ()]
    return page(
        "Generation report",
        element("h1", "Generated questions"),
        element("p", _describe_generator(config), class_="soft"),
        _build_headline(pairs, scores, config, result),
        _build_scores(scores),
        _build_kinds(pairs, config),
        _build_sources(records, config),
        _build_left_out(corpus, result),
        _build_cost(config, result),
        _build_samples(records, config),
        section(
            "What was generated from what",
            facts(
                [
                    ("documents read", len(corpus.documents)),
                    ("passages", sum(len(record.chunks) for record in records)),
                    ("release", __version__),
                    *((name, getattr(config, name)) for name in ("generator", "num_pairs", "seed")),
                ]
            ),
        ),
    )


def build_unchanged_report(run: RunContext, runs: Sequence[str]) -> str:
    """Return the page of a run that had nothing to do; ``runs`` are the last ones, newest first."""
    return page(
        "Generation report",
        element("h1", "Nothing new"),
        element(
            "p",
            f"The {run.corpus.documents:,} documents and the settings of sdg are those of the run "
            f"{run.corpus.unchanged_since}: nothing was generated, paid or trained. With skip_unchanged=false a run "
            f"goes on all the same.",
        ),
        section("Recurring runs, newest first", element("ul", *(element("li", line) for line in runs))),
    )


def _describe_generator(config: SdgConfig) -> str:
    if config.generator == "offline":
        return f"by {config.offline_method} heuristics, without an LLM: not for claims of quality"
    return f"by {config.qa_generation_model}, judged by {config.quality_judge_model}"


def _build_headline(
    pairs: Sequence[QaPair], scores: Sequence[PairScores], config: SdgConfig, result: GenerationResult
) -> Markup:
    records = result.records
    with_pairs = sum(bool(record.pairs) for record in records)
    items: list[tuple[str, object, str]] = [
        ("Questions", f"{len(pairs):,}", f"{len(pairs) / len(records):.1f} for each document or bundle"),
        ("Documents with questions", f"{with_pairs:,}", f"of {len(records):,}"),
    ]
    if scores:
        overall = [each.overall.score for each in scores]
        items.append(
            ("Mean overall score", f"{sum(overall) / len(overall):.2f}", f"{min(overall):g} to {max(overall):g}")
        )
    cost = compute_cost(result.tokens, config.prices)
    if result.tokens:
        total = sum(tokens.total for tokens in result.tokens.values())
        items.append(("Tokens", f"{total:,}", "cost not known: no prices" if cost is None else f"cost {cost:,.2f}"))
    return tiles(*items)


def _build_scores(scores: Sequence[PairScores]) -> Markup:
    if not scores:
        return Markup("")
    charts = [_draw_histogram(name, [getattr(each, name).score for each in scores]) for name in _SCORES]
    note = "Share of questions by the judge's score from 1 to 10; half scores count for the whole below."
    return section("Scores", element("p", note, class_="soft"), element("div", *charts, class_="charts"))


def _draw_histogram(name: str, values: Sequence[float]) -> Markup:
    counts = Counter(int(value) for value in values)
    groups = range(1, _BEST_SCORE + 1)
    title = f"{name.replace('_', ' ').capitalize()}: mean {sum(values) / len(values):.2f}"
    shares = [counts[group] / len(values) for group in groups]
    return bar_chart(title, [str(group) for group in groups], [("questions", _COLOUR)], [shares], fitted=True)


def _build_kinds(pairs: Sequence[QaPair], config: SdgConfig) -> Markup:
    """Show how many questions there are of each kind, beside what the LLM was asked for."""
    quotas: dict[str, Mapping[str, int]] = {}
    if config.generator == "llm":
        quotas = {
            "query_type": compute_quotas(config.num_pairs, config.query_counts),
            "reasoning_type": compute_quotas(config.num_pairs, config.reasoning_counts),
            "question_style": compute_quotas(config.num_pairs, config.question_styles),
        }
    rows: list[list[object]] = []
    for name in ("query_type", "reasoning_type", "question_style", "hop_count", "question_complexity"):
        counts = Counter(str(getattr(pair, name)) for pair in pairs if getattr(pair, name) is not None)
        expected = quotas.get(name, {})
        for kind in sorted(counts.keys() | expected.keys()):
            share = f"{expected.get(kind, 0) / config.num_pairs:.0%}" if expected else "–"
            rows.append([name.replace("_", " "), kind, f"{counts[kind]:,}", _percent(counts[kind], len(pairs)), share])
    return section(
        "Kinds of question", table(["Kind", "Value", "Questions", "Share", "Asked for"], rows, text_columns=2)
    )


def _build_sources(records: Sequence[QaRecord], config: SdgConfig) -> Markup:
    """Show what each of several sources gave."""
    if len(config.sources) < 2:
        return Markup("")
    sources = count_by_source(records, config.sources)
    pairs = sum(counts.pairs for counts in sources.values())
    rows: list[list[object]] = [
        [
            name,
            f"{counts.documents:,}",
            f"{counts.pairs:,}",
            _percent(counts.pairs, pairs),
            counts.weight or "all of it",
        ]
        for name, counts in sources.items()
    ]
    return section("Sources", table(["Source", "Documents", "Questions", "Share", "Weight"], rows))


def _build_left_out(corpus: Corpus, result: GenerationResult) -> Markup:
    """Show the questions, documents and files that are not in the data, by reason."""
    rows: list[list[object]] = [
        ["questions", reason, f"{count:,}"] for reason, count in result.totals.get("rejected_pairs", {}).items()
    ]
    empty = [record.source_id for record in result.records if not record.pairs]
    reasons = Counter(str(result.failures.get(name, "its passages are too short")) for name in empty)
    rows += [["documents", quoted(reason, TEXT_CHARACTERS), f"{count:,}"] for reason, count in sorted(reasons.items())]
    rows += [["files", reason, f"{count:,}"] for reason, count in corpus.skipped.items()]
    if not rows:
        return section("Left out", element("p", "Nothing."))
    names: Iterable[object] = ()
    if empty:
        more = f" and {len(empty) - LISTED_DOCUMENTS} more" if len(empty) > LISTED_DOCUMENTS else ""
        some = ", ".join(empty[:LISTED_DOCUMENTS]) + more
        names = [element("p", "Documents without questions: ", quoted(some))]
    return section("Left out", table(["What", "Why", "How many"], rows, text_columns=2), *names)


def _build_cost(config: SdgConfig, result: GenerationResult) -> Markup:
    """Show the tokens of the answers that the data is made of, whichever run paid for them."""
    if not result.tokens:
        return Markup("")
    rows: list[list[object]] = []
    for model, used in sorted(result.tokens.items()):
        cost = compute_cost({model: used}, config.prices)
        rows.append([model, f"{used.prompt:,}", f"{used.completion:,}", "–" if cost is None else f"{cost:,.4f}"])
    return section("Tokens and cost", table(["Model", "Prompt tokens", "Completion tokens", "Cost"], rows))


def _build_samples(records: Sequence[QaRecord], config: SdgConfig) -> Markup:
    """Show questions drawn at random, with what answers them."""
    pairs = [(record, number) for record in records for number in range(len(record.pairs))]
    drawn = random.Random(config.seed).sample(range(len(pairs)), min(SAMPLES, len(pairs)))
    return section(f"{len(drawn)} questions drawn at random", *(_build_sample(*pairs[n]) for n in sorted(drawn)))


def _build_sample(record: QaRecord, number: int) -> Markup:
    pair = record.pairs[number]
    texts = {chunk.chunk_id: chunk.text for chunk in record.chunks}
    items: list[tuple[str, object]] = []
    if pair.answer is not None:
        items.append(("answer", quoted(pair.answer, TEXT_CHARACTERS)))
    segments = dict.fromkeys(pair.segment_ids or ())
    items += [(f"passage {n}", quoted(texts[n], TEXT_CHARACTERS)) for n in segments if n in texts]
    items.append(("document", quoted(", ".join(record.file_name), TEXT_CHARACTERS)))
    if record.scores:
        overall = record.scores[number].overall
        items.append((f"judge: {overall.score:g}", quoted(overall.assessment, TEXT_CHARACTERS)))
    return element("div", element("h3", quoted(pair.question, TEXT_CHARACTERS)), facts(items))


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"
