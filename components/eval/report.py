"""The evaluation report, a page for a person: verdict, metrics, and the queries behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components import __version__
from components.core.encoder.config import EncoderConfig
from components.core.reports.chart import bar_chart, legend
from components.core.reports.html import Markup, element, facts, join, page, quoted, section, table, tiles
from components.eval.component import EvalConfig
from components.eval.gate import EvalGate
from components.eval.metrics import FAMILIES, Evaluation, find_first_relevant_rank, metric_name
from components.eval.significance import compute_paired_differences
from components.eval.slices import slice_by_kind
from components.eval.systems import IndexCost

# In the order in which they stand beside each other.
LABELS = {"bm25": "BM25", "base": "Base", "champion": "Champion", "finetuned": "Fine-tuned", "nim": "Endpoint"}
EXAMPLES = 10
QUERY_CHARACTERS, PASSAGE_CHARACTERS = 300, 240
# Precision is bounded far below 1 where a query has few answers: beside the others it would only look bad.
_CHARTED = ("NDCG", "Recall", "MAP", "MRR")
_COLOURS = {"bm25": 0, "base": 1, "finetuned": 2, "nim": 3, "champion": 4}


def build_report(
    config: EvalConfig,
    encoder: EncoderConfig,
    evaluations: Mapping[str, Evaluation],
    costs: Mapping[str, IndexCost],
    gate: EvalGate,
    cutoffs: Sequence[int],
    runs: Sequence[str] = (),
) -> str:
    """Return the page as HTML; equal input gives equal bytes. ``runs`` has a line for each recurring run."""
    test, golden = evaluations["test"], evaluations.get("golden")
    return page(
        "Evaluation report",
        element("h1", "Retrieval evaluation"),
        element("p", f"{encoder.base_model}, before and after fine-tuning", class_="soft"),
        _verdict(gate),
        _headline(config, test, golden, gate),
        section("Recurring runs, newest first", element("ul", *(element("li", run) for run in runs))) if runs else "",
        _figures("Test set", "Held-out questions of the generated or labelled data.", config, test, cutoffs),
        _figures("Golden set", "Your own questions, given as golden_eval.", config, golden, cutoffs) if golden else "",
        _slices("Test set", test, gate.metric),
        _slices("Golden set", golden, gate.metric) if golden else "",
        _shortened(test, gate.metric),
        _examples("Golden set", golden, gate.metric) if golden else "",
        _examples("Test set", test, gate.metric),
        _costs(costs),
        _what_was_evaluated(config, encoder, evaluations, cutoffs),
    )


def _verdict(gate: EvalGate) -> Markup:
    headline = "Quality gate passed" if gate.passed else "Quality gate not passed"
    return element(
        "div",
        element("strong", headline),
        element("ul", *(element("li", reason) for reason in gate.reasons)),
        class_=f"verdict {'good' if gate.passed else 'bad'}",
    )


def _headline(config: EvalConfig, test: Evaluation, golden: Evaluation | None, gate: EvalGate) -> Markup:
    items: list[tuple[str, object, str]] = []
    for name, evaluation in (("test set", test), ("golden set", golden)):
        if evaluation is None or "finetuned" not in evaluation.scores:
            continue
        tuned = _value(evaluation, "finetuned", config.gate_metric, config.gate_k)
        note = f"{len(evaluation.data.queries)} queries"
        if "base" in evaluation.scores:
            base = _value(evaluation, "base", config.gate_metric, config.gate_k)
            note = f"base {base:.4f}, {_relative(base, tuned)}, {note}"
        items.append((f"{gate.metric}, {name}", f"{tuned:.4f}", note))
    if gate.gain is not None and gate.interval is not None:
        low, high = gate.interval
        items.append((f"Gain in {gate.metric}", _signed(gate.gain), f"95 % confidence: {low:+.4f} to {high:+.4f}"))
    items.append(("Passages searched", f"{len(test.data.corpus):,}", "by exact search"))
    return tiles(*items)


def _figures(title: str, about: str, config: EvalConfig, evaluation: Evaluation, cutoffs: Sequence[int]) -> Markup:
    systems = list(evaluation.scores)
    series = [(LABELS[system], _COLOURS[system]) for system in systems]
    data = evaluation.data

    def chart(caption: str, metrics: Sequence[tuple[str, int]]) -> Markup:
        values = [[_value(evaluation, system, family, k) for family, k in metrics] for system in systems]
        return bar_chart(caption, [metric_name(family, k) for family, k in metrics], series, values)

    counted = f"{len(data.queries):,} queries, {len(data.corpus):,} passages; answers are {data.level}s."
    return section(
        title,
        element("p", f"{about} {counted}", class_="soft"),
        legend(series),
        element(
            "div",
            chart(f"Quality at cut-off {config.gate_k}", [(family, config.gate_k) for family in _CHARTED]),
            chart("Recall by cut-off", [("Recall", k) for k in cutoffs]),
            class_="charts",
        ),
        _all_metrics(evaluation, cutoffs, metric_name(config.gate_metric, config.gate_k)),
    )


def _all_metrics(evaluation: Evaluation, cutoffs: Sequence[int], decisive: str) -> Markup:
    """Show a row for each metric; that of the gate, ``decisive``, stands out."""
    systems = list(evaluation.scores)
    compared = {"base", "finetuned"} <= set(systems)
    rows = []
    for family in FAMILIES:
        for k in cutoffs:
            name = metric_name(family, k)
            cells: list[object] = [element("strong", name, " (gate)") if name == decisive else name]
            cells += [f"{_value(evaluation, system, family, k):.4f}" for system in systems]
            if compared:
                base, tuned = (_value(evaluation, system, family, k) for system in ("base", "finetuned"))
                cells += [_signed(tuned - base), _relative(base, tuned)]
            rows.append(cells)
    header = ["Metric", *(LABELS[system] for system in systems), *(("Change", "Relative") if compared else ())]
    return table(header, rows)


def _slices(title: str, evaluation: Evaluation, metric: str) -> Markup:
    """Show the metric by kind of query; nothing where the queries are all of one kind."""
    slices = slice_by_kind(evaluation.data, evaluation.scores, metric)
    if not slices:
        return Markup("")
    systems = list(evaluation.scores)
    rows = [
        [
            "" if number and slices[number - 1].field == kind.field else kind.field.replace("_", " "),
            kind.value,
            kind.queries,
            *(f"{kind.means[system]:.4f}" for system in systems),
            "–" if kind.gain is None else _signed(kind.gain),
        ]
        for number, kind in enumerate(slices)
    ]
    header = ["Kind", "Value", "Queries", *(LABELS[system] for system in systems), "Change"]
    return section(f"{title}: {metric} by kind of query", table(header, rows, text_columns=2))


def _shortened(evaluation: Evaluation, metric: str) -> Markup:
    """Show the metric of vectors cut to fewer dimensions; nothing unless asked for."""
    if not evaluation.shortened:
        return Markup("")
    systems = list(next(iter(evaluation.shortened.values())))
    rows = [
        [f"{dimension}", f"{4 * dimension:,}", *(f"{scores[system].get_mean(metric):.4f}" for system in systems)]
        for dimension, scores in evaluation.shortened.items()
    ]
    rows.append(["all", "", *(f"{evaluation.scores[system].get_mean(metric):.4f}" for system in systems)])
    return section(
        f"Test set: {metric} of shorter vectors",
        table(["Dimensions", "Bytes per passage", *(LABELS[system] for system in systems)], rows),
    )


def _costs(costs: Mapping[str, IndexCost]) -> Markup:
    if not costs:
        return Markup("")
    rows = [
        [
            LABELS[system],
            cost.dimension,
            f"{cost.bytes_per_passage:,}",
            "–" if cost.passages_per_second is None else f"{cost.passages_per_second:,.0f}",
            "–" if cost.milliseconds_per_query is None else f"{cost.milliseconds_per_query:.2f}",
        ]
        for system, cost in costs.items()
    ]
    header = ["Model", "Dimensions", "Bytes per passage", "Passages per second", "Milliseconds per query"]
    note = (
        "On the machine of this evaluation: passages encoded, queries encoded and searched exactly, all of them at "
        "once. Vectors as 32-bit floats, without the index around them. Not measured where vectors came from the cache."
    )
    return section("What an index costs", table(header, rows), element("p", note, class_="soft"))


def _examples(title: str, evaluation: Evaluation, metric: str) -> Markup:
    """Show the queries that fine-tuning helped and hurt most; nothing unless both models were evaluated."""
    if not {"base", "finetuned"} <= set(evaluation.scores):
        return Markup("")
    changes = compute_paired_differences(evaluation.scores, metric)
    order = sorted(changes, key=lambda query: (changes[query], query))
    losses = [query for query in order if changes[query] < 0]
    wins = [query for query in reversed(order) if changes[query] > 0]
    equal = len(changes) - len(wins) - len(losses)
    return section(
        f"{title}: wins and losses",
        element(
            "p",
            f"By {metric}, the fine-tuned model does better on {len(wins)} queries, worse on {len(losses)} and the "
            f"same on {equal}. Below, up to {EXAMPLES} of the largest changes each way. Rank is that of the first "
            f"right answer.",
        ),
        *(
            join((element("h3", name), _example_table(evaluation, queries[:EXAMPLES], changes)))
            for name, queries in (("Largest wins", wins), ("Largest losses", losses))
            if queries
        ),
    )


def _example_table(evaluation: Evaluation, queries: Sequence[str], changes: Mapping[str, float]) -> Markup:
    rows = []
    for query in queries:
        judged = evaluation.data.qrels[query]
        ranks = [
            find_first_relevant_rank(judged, evaluation.rankings[system][query]) for system in ("base", "finetuned")
        ]
        text = join(
            (
                quoted(evaluation.data.queries[query], QUERY_CHARACTERS),
                element("span", "Answer: ", _answer(evaluation, judged), class_="under"),
            )
        )
        rows.append([text, *("not found" if rank is None else rank for rank in ranks), _signed(changes[query])])
    return table(["Query and its answer", "Base rank", "Fine-tuned rank", "Change"], rows)


def _answer(evaluation: Evaluation, judged: Mapping[str, int]) -> Markup:
    best = max(judged, key=lambda name: judged[name])
    more = sum(score > 0 for score in judged.values()) - 1
    text = best if evaluation.data.level == "document" else evaluation.data.corpus[best]
    return join((quoted(text, PASSAGE_CHARACTERS), f" (and {more} more)" if more else ""))


def _what_was_evaluated(
    config: EvalConfig, encoder: EncoderConfig, evaluations: Mapping[str, Evaluation], cutoffs: Sequence[int]
) -> Markup:
    code = "code"
    items: list[tuple[str, object]] = [
        ("Base model", element(code, encoder.base_model)),
        ("Revision", element(code, encoder.base_model_revision or "not pinned")),
        ("Systems", ", ".join(LABELS[system] for system in evaluations["test"].scores)),
        ("Query prefix", element(code, repr(encoder.query_prefix))),
        ("Passage prefix", element(code, repr(encoder.passage_prefix))),
        ("Longest query, passage", f"{encoder.query_max_length}, {encoder.passage_max_length} tokens"),
        ("Pooling", encoder.pooling + (", vectors of length 1" if encoder.l2_normalize else "")),
        ("Cut-offs", ", ".join(str(k) for k in cutoffs)),
    ]
    if config.eval_nim:
        items.append(("Endpoint", join((element(code, config.nim_model), " at ", element(code, config.nim_url)))))
    items.append(("Evaluated with", f"BEIR's metrics (trec_eval), version {__version__} of this software"))
    note = (
        "The confidence interval comes from 10,000 bootstrap resamples of the queries. Questions about one document "
        "are not independent, so the true interval is somewhat wider. BM25 matches words; it is shown because a dense "
        "model that does not beat it may not be worth serving, and because questions written with the passage in "
        "sight share its words and flatter BM25."
    )
    return section("What was evaluated", facts(items), element("p", note, class_="soft"))


def _value(evaluation: Evaluation, system: str, family: str, k: int) -> float:
    return evaluation.scores[system].get_mean(metric_name(family, k))


def _signed(value: float) -> Markup:
    colour = "good" if value > 0 else "bad" if value < 0 else None
    return element("span", f"{value:+.4f}", class_=colour)


def _relative(base: float, tuned: float) -> str:
    return f"{(tuned - base) / base:+.1%}".replace("%", " %") if base else "–"
