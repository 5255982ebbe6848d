"""The data report, a page for a person: what was dropped, how the data was split, what mining found."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from components import __version__
from components.core.reports.chart import bar_chart, legend
from components.core.reports.html import Markup, element, facts, join, page, quoted, section, table, tiles
from components.prep.component import PrepConfig
from components.prep.mine.mining import MinedExample
from components.prep.read.records import QueryExample, Records
from components.prep.split.data_split import DataSplit
from components.prep.split.frozen import FrozenEval

EXAMPLES = 10
BINS = 12
QUESTION_CHARACTERS, PASSAGE_CHARACTERS = 300, 240
_SERIES = [("Answers", 2), ("Negatives", 3)]


def build_report(
    config: PrepConfig,
    records: Records,
    split: DataSplit,
    mined: Sequence[MinedExample],
    frozen: FrozenEval | None,
    warnings: Sequence[str],
) -> str:
    """Return the page as HTML; equal input gives equal bytes. ``mined`` belongs to ``split.train``."""
    return page(
        "Data report",
        element("h1", "Training and test data"),
        element("p", "What was read, what was left out and why, how it was split, what mining found", class_="soft"),
        _warnings(warnings),
        _headline(records, split, mined, frozen),
        _filters(records, split, mined),
        _sides(records, split, frozen),
        _duplicates(config, records, split),
        _quality(config, records),
        _scores(mined),
        _hardest(split.train, mined),
        _suspicious(split.train, mined),
        _settings(config, frozen),
    )


def _warnings(warnings: Sequence[str]) -> Markup:
    if not warnings:
        return element("div", element("strong", "Nothing to warn of"), class_="verdict good")
    items = [element("li", warning) for warning in warnings]
    return element("div", element("strong", "Read this first"), element("ul", *items), class_="verdict bad")


def _headline(records: Records, split: DataSplit, mined: Sequence[MinedExample], frozen: FrozenEval | None) -> Markup:
    tested = ("frozen, as given", len(frozen.queries)) if frozen else ("held out", len(split.test))
    negatives = sum(len(example.negatives) for example in mined)
    each = negatives / len(mined) if mined else 0
    return tiles(
        ("Training questions", f"{len(split.train):,}", f"{len(split.val):,} more for validation"),
        ("Test questions", f"{tested[1]:,}", tested[0]),
        ("Passages", f"{len(records.passages):,}", f"{len(split.training_passages):,} of them for training"),
        ("Hard negatives", f"{negatives:,}", f"{each:.1f} a question"),
    )


def _filters(records: Records, split: DataSplit, mined: Sequence[MinedExample]) -> Markup:
    """Show how many questions each filter took, in the order in which they act."""
    left = len(records.examples) + sum(records.dropped.values())
    rows: list[list[object]] = [["Read", "", f"{left:,}"]]
    for reason, count in [*records.dropped.most_common(), *split.dropped.most_common()]:
        left -= count
        rows.append([reason[0].upper() + reason[1:], f"−{count:,}", f"{left:,}"])
    note = (
        "Questions, and judged documents whose scores do not fit their questions, which count once. "
        f"{sum(example.above for example in mined):,} pairs of a question and a passage scored above the margins and "
        "were not made negatives: the passages may be answers that nobody labelled."
    )
    return section("Through the filters", table(["Filter", "Taken", "Left"], rows), element("p", note, class_="soft"))


def _sides(records: Records, split: DataSplit, frozen: FrozenEval | None) -> Markup:
    labels = {"train": "Training", "val": "Validation", "test": "Test", "held out": "Kept out for the frozen set"}
    asked = {"train": len(split.train), "val": len(split.val), "test": len(split.test)}
    total = sum(asked.values()) or 1
    rows = [
        [label, f"{split.documents[side]:,}", f"{asked[side]:,}", f"{asked[side] / total:.1%}".replace("%", " %")]
        if side in asked
        else [label, f"{split.documents[side]:,}", "", ""]
        for side, label in labels.items()
        if split.documents[side]
    ]
    withheld = len(records.passages) - len(split.training_passages)
    note = (
        f"{sum(split.documents.values()):,} documents in {split.groups:,} groups that are never separated. "
        f"{withheld:,} passages are withheld from training: they, or duplicates of them, stand in other documents."
    )
    if frozen:
        note += f" The test set is the frozen one: {len(frozen.queries):,} questions, unchanged."
    header = ["Side", "Documents", "Questions", "Share"]
    return section("The split", table(header, rows), element("p", note, class_="soft"))


def _duplicates(config: PrepConfig, records: Records, split: DataSplit) -> Markup:
    clusters: dict[int, list[str]] = defaultdict(list)
    for text in records.passages:
        clusters[split.passage_clusters[text]].append(text)
    several = sorted((texts for texts in clusters.values() if len(texts) > 1), key=lambda t: (-len(t), t[0]))
    repeated = sum(len(documents) > 1 for documents in records.passages.values())
    similar = "not looked for" if config.near_duplicate_threshold is None else f"{sum(map(len, several)):,}"
    counts = facts(
        [
            ("Passages in several documents", f"{repeated:,}"),
            ("Near-duplicates of another", similar),
            ("Clusters of them", f"{len(several):,}"),
        ]
    )
    if not several:
        return section("Duplicates", counts)
    rows = [[quoted(sorted(texts)[0], PASSAGE_CHARACTERS), len(texts)] for texts in several[:EXAMPLES]]
    return section("Duplicates", counts, element("h3", "Largest clusters"), table(["One of them", "Passages"], rows))


def _quality(config: PrepConfig, records: Records) -> Markup:
    """Show a histogram of the judge's scores; nothing when nobody judged."""
    if not records.scores:
        return Markup("")
    whole = [min(math.floor(score), 10) for score in records.scores]
    lowest, highest = min(whole), max(whole)
    groups = [f"{score}" for score in range(lowest, highest + 1)]
    shares = [whole.count(score) / len(whole) for score in range(lowest, highest + 1)]
    kept = sum(score >= config.quality_threshold for score in records.scores)
    note = f"{kept:,} of {len(whole):,} scores are at least quality_threshold {config.quality_threshold:g}."
    chart = bar_chart("Share of the scores from each to the next", groups, [("Scores", 1)], [shares], fitted=True)
    return section("Judged quality", element("p", note), chart)


def _scores(mined: Sequence[MinedExample]) -> Markup:
    """Show histograms of the scores of answers and negatives over the same bins."""
    positives = [score for example in mined for score in example.positive_scores]
    negatives = [negative.score for example in mined for negative in example.negatives]
    low, high = min(positives + negatives), max(positives + negatives)
    width = (high - low) / BINS or 1.0

    def compute_shares(scores: list[float]) -> list[float]:
        counts = [0] * BINS
        for score in scores:
            counts[min(int((score - low) / width), BINS - 1)] += 1
        return [count / len(scores) for count in counts]

    groups = [f"{low + number * width:.2f}" for number in range(BINS)]
    rows = [
        [name, f"{len(scores):,}", *(f"{value:.4f}" for value in (min(scores), statistics.median(scores), max(scores)))]
        for name, scores in (("Answers", positives), ("Negatives", negatives))
    ]
    return section(
        "Scores",
        legend(_SERIES),
        bar_chart(
            "Share of the scores, by the lowest of each bin",
            groups,
            _SERIES,
            [compute_shares(positives), compute_shares(negatives)],
            fitted=True,
        ),
        table(["", "Pairs", "Lowest", "Median", "Highest"], rows),
    )


def _hardest(train: Sequence[QueryExample], mined: Sequence[MinedExample]) -> Markup:
    """Show the negatives that score closest to the answer of their question."""
    closest = []
    for example, scored in zip(train, mined, strict=True):
        positive = min(scored.positive_scores)
        best = max(scored.negatives, key=lambda negative: (negative.score, negative.text))
        closest.append((positive - best.score, example.query, example, best, positive))
    closest.sort(key=lambda item: item[:2])
    rows = [
        [
            _question_and_passages(example, negative.text, "Negative"),
            negative.origin,
            f"{positive:.4f}",
            f"{negative.score:.4f}",
        ]
        for _, _, example, negative, positive in closest[:EXAMPLES]
    ]
    note = "If these negatives do answer their questions, lower hard_neg_margin or set hard_neg_range_min."
    header = ["Question, answer and negative", "Origin", "Answer scores", "Negative scores"]
    return section("Hardest negatives", element("p", note), table(header, rows))


def _suspicious(train: Sequence[QueryExample], mined: Sequence[MinedExample]) -> Markup:
    """Show the questions whose labelled answer scores lower than many other passages."""
    ranked = sorted(
        ((-m.above, min(m.positive_scores), e.query, e) for e, m in zip(train, mined, strict=True) if m.above),
        key=lambda item: item[:3],
    )
    if not ranked:
        return Markup("")
    rows = [
        [_question_and_passages(example), f"{score:.4f}", f"{-above:,}"]
        for above, score, _, example in ranked[:EXAMPLES]
    ]
    note = (
        "Many passages score above the margin of these questions' answers: the question may be too general, the "
        "answer wrong, or other passages answer it as well."
    )
    header = ["Question and answer", "Answer scores", "Passages above the margin"]
    return section("Suspicious questions", element("p", note), table(header, rows))


def _question_and_passages(example: QueryExample, other: str = "", label: str = "") -> Markup:
    """Show the question above its first answer, and another passage if given."""
    parts = [
        quoted(example.query, QUESTION_CHARACTERS),
        element("span", "Answer: ", quoted(example.positives[0], PASSAGE_CHARACTERS), class_="under"),
    ]
    if other:
        parts.append(element("span", f"{label}: ", quoted(other, PASSAGE_CHARACTERS), class_="under"))
    return join(parts)


def _settings(config: PrepConfig, frozen: FrozenEval | None) -> Markup:
    code = "code"
    shown = (
        "base_model", "quality_threshold", "max_pos_docs", "conversion_seed", "near_duplicate_threshold",
        "split_group_field", "split_time_field", "round_trip_top_k", "hard_negatives_to_mine", "hard_neg_margin",
        "hard_neg_absolute_margin", "hard_neg_range_min", "hard_neg_range_max", "hard_neg_sampling",
    )  # fmt: skip
    ratios = f"{config.train_ratio:g}, {config.val_ratio:g}, {config.test_ratio:g}"
    items: list[tuple[str, object]] = [(name, element(code, str(getattr(config, name)))) for name in shown]
    items.append(("Ratios", ratios + (" (the frozen set is the test set)" if frozen else "")))
    items.append(("Version", f"{__version__} of this software"))
    return section("Settings", facts(items))
