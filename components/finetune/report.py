"""The course of training as a page for a person: loss, validation, rate, gradient, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from components import __version__
from components.core.reports.chart import line_chart
from components.core.reports.html import Markup, element, facts, page, section, table, tiles
from components.finetune.component import FinetuneConfig
from components.finetune.trainer import Step


def build_report(
    config: FinetuneConfig,
    done: Sequence[Step],
    val: Sequence[tuple[int, float]],
    figures: Mapping[str, Any],
    *,
    chip: str | None = None,
) -> str:
    """The page. ``val``: step (0 is the base model) and nDCG@10 on the val split; empty without one.

    ``chip``: what ``mfu`` of the figures is a share of.
    """
    return page(
        "Training report",
        element("h1", "Fine-tuning"),
        element("p", f"{config.base_model}, {figures['examples']:,} examples", class_="soft"),
        _headline(done, val, figures, chip),
        section("Course", element("div", *_charts(done, val), class_="charts")),
        _validations(val, figures) if val else "",
        section("Run", facts(_run(config, figures))),
        section("Settings", facts(_settings(config))),
    )


def _headline(
    done: Sequence[Step], val: Sequence[tuple[int, float]], figures: Mapping[str, Any], chip: str | None
) -> Markup:
    epochs = _counted(done[-1].epoch + 1, "epoch")
    items: list[tuple[str, object, str]] = [
        ("Loss", f"{figures['last_loss']:.4f}", f"mean of the last tenth; {figures['first_loss']:.4f} at the start"),
        ("Steps", f"{figures['steps']:,}", f"of {figures['batch_size']} queries, {epochs}"),
        ("Tokens per second", f"{figures['tokens_per_second']:,.0f}", "median of the steps"),
    ]
    if "mfu" in figures:
        items.append(("Use of the GPUs (MFU)", f"{figures['mfu']:.0%}", f"of {chip}"))
    if val:
        base = f"base {figures['base_val_ndcg_at_10']:.4f}, " if "base_val_ndcg_at_10" in figures else ""
        note = f"{base}best after step {figures['best_step']}"
        items.insert(0, ("nDCG@10, val split", f"{figures['best_val_ndcg_at_10']:.4f}", note))
    return tiles(*items)


def _charts(done: Sequence[Step], val: Sequence[tuple[int, float]]) -> list[Markup]:
    charts = [line_chart("Loss by step", [(step.step, step.loss) for step in done], low=0.0)]
    if val:
        charts.append(line_chart("nDCG@10 on the val split by step", val, colour=1))
    charts.append(line_chart("Gradient norm before clipping", [(s.step, s.grad_norm) for s in done], colour=3, low=0.0))
    charts.append(line_chart("Learning rate", [(step.step, step.lr) for step in done], colour=4, low=0.0))
    return charts


def _validations(val: Sequence[tuple[int, float]], figures: Mapping[str, Any]) -> Markup:
    notes = {0: "base model", figures["best_step"]: "best"}
    rows = [[f"{step:,}", notes.get(step, ""), f"{value:.4f}"] for step, value in val]
    return section("Val split", table(["After step", "", "nDCG@10"], rows, text_columns=2))


def _settings(config: FinetuneConfig) -> list[tuple[str, str]]:
    """As they are written on the command line and in YAML."""
    given = config.model_dump(mode="json")
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in given.items()]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _run(config: FinetuneConfig, figures: Mapping[str, Any]) -> list[tuple[str, object]]:
    resumed = figures["resumed_at_step"]
    kept = config.checkpoint_uri or "nowhere: a killed run would have started again"
    return [
        ("Continued after step", resumed or "was not interrupted"),
        ("Training states kept at", kept),
        ("Release", __version__),
    ]
