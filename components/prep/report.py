"""What became of the data, as a page for a person: what was dropped, how it was split, what mining found."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from components import __version__
from components.core.reports.chart import bar_chart, legend
from components.core.reports.html import Markup, element, facts, join, page, quoted, section, table, tiles
from components.prep.component import PrepConfig
from components.prep.mine.mining import Mined
from components.prep.read.records import Example, Records
from components.prep.split.frozen import FrozenEval
from components.prep.split.split import Split

EXAMPLES = 10
BINS = 12
QUESTION_CHARACTERS, PASSAGE_CHARACTERS = 300, 240
_SERIES = [("Answers", 2), ("Negatives", 3)]


def build_report(
    config: PrepConfig,
    records: Records,
    parts: Split,
    mined: Sequence[Mined],
    frozen: FrozenEval | None,
    warnings: Sequence[str],
) -> str:
    """The page; equal input gives equal bytes. ``mined`` belongs to ``parts.train``."""
    return page(
        "Data report",
        element("h1", "Training and test data"),
        element("p", "What was read, what was left out and why, how it was split, what mining found", class_="soft"),
        _warnings(warnings),
        _headline(records, parts, mined, frozen),
        _filters(records, parts, mined),
        _sides(records, parts, frozen),
        _duplicates(config, records, parts),
        _quality(config, records),
        _scores(mined),
        _hardest(parts.train, mined),
        _suspicious(parts.train, mined),
        _how(config, frozen),
    )


def _warnings(warnings: Sequence[str]) -> Markup:
    if not warnings:
        return element("div", element("strong", "Nothing to warn of"), class_="verdict good")
    items = [element("li", warning) for warning in warnings]
    return element("div", element("strong", "Read this first"), element("ul", *items), class_="verdict bad")


def _headline(records: Records, parts: Split, mined: Sequence[Mined], frozen: FrozenEval | None) -> Markup:
    tested = ("frozen, as given", len(frozen.queries)) if frozen else ("held out", len(parts.test))
    negatives = sum(len(one.negatives) for one in mined)
    each = negatives / len(mined) if mined else 0
    return tiles(
        ("Training questions", f"{len(parts.train):,}", f"{len(parts.val):,} more for validation"),
        ("Test questions", f"{tested[1]:,}", tested[0]),
        ("Passages", f"{len(records.passages):,}", f"{len(parts.training_passages):,} of them for training"),
        ("Hard negatives", f"{negatives:,}", f"{each:.1f} a question"),
    )


def _filters(records: Records, parts: Split, mined: Sequence[Mined]) -> Markup:
    """How many questions each filter took, in the order in which they act."""
    left = len(records.examples) + sum(records.dropped.values())
    rows: list[list[object]] = [["Read", "", f"{left:,}"]]
    for reason, count in [*records.dropped.most_common(), *parts.dropped.most_common()]:
        left -= count
        rows.append([reason[0].upper() + reason[1:], f"−{count:,}", f"{left:,}"])
    note = (
        "Questions, and judged documents whose scores do not fit their questions, which count once. "
        f"{sum(one.above for one in mined):,} pairs of a question and a passage scored above the margins and were "
        "not made negatives: the passages may be answers that nobody labelled."
    )
    return section("Through the filters", table(["Filter", "Taken", "Left"], rows), element("p", note, class_="soft"))


def _sides(records: Records, parts: Split, frozen: FrozenEval | None) -> Markup:
    labels = {"train": "Training", "val": "Validation", "test": "Test", "held out": "Kept out for the frozen set"}
    asked = {"train": len(parts.train), "val": len(parts.val), "test": len(parts.test)}
    total = sum(asked.values()) or 1
    rows = [
        [label, f"{parts.documents[side]:,}", f"{asked[side]:,}", f"{asked[side] / total:.1%}".replace("%", " %")]
        if side in asked
        else [label, f"{parts.documents[side]:,}", "", ""]
        for side, label in labels.items()
        if parts.documents[side]
    ]
    withheld = len(records.passages) - len(parts.training_passages)
    note = (
        f"{sum(parts.documents.values()):,} documents in {parts.groups:,} groups that are never separated. "
        f"{withheld:,} passages are withheld from training: they, or duplicates of them, stand in other documents."
    )
    if frozen:
        note += f" The test set is the frozen one: {len(frozen.queries):,} questions, unchanged."
    header = ["Side", "Documents", "Questions", "Share"]
    return section("The split", table(header, rows), element("p", note, class_="soft"))


def _duplicates(config: PrepConfig, records: Records, parts: Split) -> Markup:
    clusters: dict[int, list[str]] = defaultdict(list)
    for text in records.passages:
        clusters[parts.passage_clusters[text]].append(text)
    several = sorted((texts for texts in clusters.values() if len(texts) > 1), key=lambda t: (-len(t), t[0]))
    repeated = sum(len(documents) > 1 for documents in records.passages.values())
    similar = "not looked for" if config.near_duplicate_threshold is None else f"{sum(map(len, several)):,}"
    found = facts(
        [
            ("Passages in several documents", f"{repeated:,}"),
            ("Near-duplicates of another", similar),
            ("Clusters of them", f"{len(several):,}"),
        ]
    )
    if not several:
        return section("Duplicates", found)
    rows = [[quoted(sorted(texts)[0], PASSAGE_CHARACTERS), len(texts)] for texts in several[:EXAMPLES]]
    return section("Duplicates", found, element("h3", "Largest clusters"), table(["One of them", "Passages"], rows))


def _quality(config: PrepConfig, records: Records) -> Markup:
    """Histogram of the judge's scores; nothing when nobody judged."""
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


def _scores(mined: Sequence[Mined]) -> Markup:
    """Histograms of positives' and negatives' scores over the same bins."""
    positives = [score for one in mined for score in one.positive_scores]
    negatives = [negative.score for one in mined for negative in one.negatives]
    low, high = min(positives + negatives), max(positives + negatives)
    width = (high - low) / BINS or 1.0

    def shares(scores: list[float]) -> list[float]:
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
            [shares(positives), shares(negatives)],
            fitted=True,
        ),
        table(["", "Pairs", "Lowest", "Median", "Highest"], rows),
    )


def _hardest(train: Sequence[Example], mined: Sequence[Mined]) -> Markup:
    """Negatives that score closest to the answer they stand beside."""
    closest = []
    for example, one in zip(train, mined, strict=True):
        positive = min(one.positive_scores)
        best = max(one.negatives, key=lambda negative: (negative.score, negative.text))
        closest.append((positive - best.score, example.query, example, best, positive))
    closest.sort(key=lambda item: item[:2])
    rows = [
        [_passage(example, negative.text, "Negative"), negative.origin, f"{positive:.4f}", f"{negative.score:.4f}"]
        for _, _, example, negative, positive in closest[:EXAMPLES]
    ]
    note = "If these negatives do answer their questions, lower hard_neg_margin or set hard_neg_range_min."
    header = ["Question, answer and negative", "Origin", "Answer scores", "Negative scores"]
    return section("Hardest negatives", element("p", note), table(header, rows))


def _suspicious(train: Sequence[Example], mined: Sequence[Mined]) -> Markup:
    """Questions whose labelled answer the model thinks worse than many other passages."""
    ranked = sorted(
        ((-one.above, min(one.positive_scores), e.query, e) for e, one in zip(train, mined, strict=True) if one.above),
        key=lambda item: item[:3],
    )
    if not ranked:
        return Markup("")
    rows = [[_passage(example), f"{score:.4f}", f"{-above:,}"] for above, score, _, example in ranked[:EXAMPLES]]
    note = (
        "Many passages score above the margin of these questions' answers: the question may be too general, the "
        "answer wrong, or other passages answer it as well."
    )
    header = ["Question and answer", "Answer scores", "Passages above the margin"]
    return section("Suspicious questions", element("p", note), table(header, rows))


def _passage(example: Example, other: str = "", label: str = "") -> Markup:
    """The question above its first answer, and another passage when there is one."""
    parts = [
        quoted(example.query, QUESTION_CHARACTERS),
        element("span", "Answer: ", quoted(example.positives[0], PASSAGE_CHARACTERS), class_="under"),
    ]
    if other:
        parts.append(element("span", f"{label}: ", quoted(other, PASSAGE_CHARACTERS), class_="under"))
    return join(parts)


def _how(config: PrepConfig, frozen: FrozenEval | None) -> Markup:
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
