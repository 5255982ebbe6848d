"""eval: search the test sets with each system, measure, decide the gate, write the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.core.distributed.launch import count_processes
from components.core.encoder.config import EncoderConfig, read_encoder
from components.core.errors import InputError
from components.core.history import RunContext, Verdict, read_run_context
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.encode_texts import EncodeOptions
from components.eval.component import EvalConfig
from components.eval.gate import EvalGate, decide_gate
from components.eval.metrics import Evaluation, check_ids, measure, metric_name
from components.eval.report import LABELS, build_report
from components.eval.results import collect_metrics, write_results
from components.eval.slices import Slice, slice_by_kind
from components.eval.systems import (
    BeirSets,
    SystemResult,
    check_endpoint,
    search_with_bm25,
    search_with_encoder,
    search_with_endpoint,
)

_log = logging.getLogger(__name__)
_SYSTEMS_IN_VERDICT = ("base", "champion", "finetuned")


@dataclass(frozen=True)
class EvalPaths:
    """The artifacts that eval reads, None for those that are not given, and those that it writes."""

    checkpoint: Path
    eval_data: Path
    golden_eval: Path | None
    champion: Path | None
    past_runs: Path | None
    eval_results: Path
    report: Path


@dataclass(frozen=True)
class EvalOutcome:
    """What was measured, by test set ("test", "golden") or system, and what the gate decided."""

    encoder: EncoderConfig
    systems: Mapping[str, SystemResult]
    evaluations: Mapping[str, Evaluation]
    slices: Mapping[str, tuple[Slice, ...]]
    gate: EvalGate


def run(
    config: EvalConfig,
    *,
    checkpoint: Path,
    eval_data: Path,
    golden_eval: Path | None = None,
    champion: Path | None = None,
    past_runs: Path | None = None,
    eval_results: Path,
    report: Path,
) -> dict[str, float | int | bool | str]:
    """Evaluate, write ``eval_results`` and ``report``, return the metrics and ``passed``.

    The history of ``past_runs`` gets the verdict. A gate that does not pass is a result, not an error. Raises
    InputError for a checkpoint or test set that cannot be read, ActionNeeded and Transient for an endpoint that does
    not answer.
    """
    paths = EvalPaths(checkpoint, eval_data, golden_eval, champion, past_runs, eval_results, report)
    outcome = evaluate(config, paths)
    write(config, paths, outcome)
    return collect_metrics(outcome.evaluations, outcome.gate)


def evaluate(config: EvalConfig, paths: EvalPaths) -> EvalOutcome:
    """Search the test sets with each system, measure what was found and decide the gate."""
    encoder = _read_encoder(paths.checkpoint)
    if paths.champion is not None:
        _read_encoder(paths.champion)
    sets = _read_sets(paths.eval_data, paths.golden_eval)
    if config.eval_nim:
        check_endpoint(config)
    cutoffs = config.list_cutoffs()
    systems = _search_all(config, paths.checkpoint, paths.champion, encoder, sets, max(cutoffs))
    evaluations = {name: _measure_set(config, name, data, systems) for name, data in sets.items()}
    metric = metric_name(config.gate_metric, config.gate_k)
    slices = {name: slice_by_kind(e.data, e.scores, metric) for name, e in evaluations.items()}
    golden = evaluations["golden"].scores if "golden" in evaluations else None
    gate = decide_gate(config, evaluations["test"].scores, len(sets["test"].queries), slices["test"], golden)
    for reason in gate.reasons:
        _log.info("gate %s: %s", "passed" if gate.passed else "not passed", reason)
    return EvalOutcome(encoder, systems, evaluations, slices, gate)


def _measure_set(config: EvalConfig, name: str, data: BeirData, systems: Mapping[str, SystemResult]) -> Evaluation:
    """Measure what every system found in the test set ``name``."""
    cutoffs = config.list_cutoffs()
    rankings = {system: result.rankings[name] for system, result in systems.items()}
    shortened = {
        dimension: {
            system: measure(data.qrels, result.shortened[dimension][name], cutoffs)
            for system, result in systems.items()
            if dimension in result.shortened
        }
        for dimension in sorted(config.eval_dimensions)
    }
    scores = {system: measure(data.qrels, ranking, cutoffs) for system, ranking in rankings.items()}
    return Evaluation(data, rankings, scores, shortened)


def write(config: EvalConfig, paths: EvalPaths, outcome: EvalOutcome) -> None:
    """Write results and report, and the verdict into the history if the run keeps one."""
    encoder, evaluations, gate = outcome.encoder, outcome.evaluations, outcome.gate
    write_results(paths.eval_results, config, encoder, evaluations, outcome.systems, outcome.slices, gate)
    runs: list[str] = []
    if context := read_run_context(paths.past_runs):
        runs = _record_verdict(context, paths, outcome)
    costs = {system: result.cost for system, result in outcome.systems.items() if result.cost}
    page = build_report(config, encoder, evaluations, costs, gate, config.list_cutoffs(), runs)
    paths.report.write_text(page, encoding="utf-8")


def _record_verdict(context: RunContext, paths: EvalPaths, outcome: EvalOutcome) -> list[str]:
    """Write the verdict into the history; return a line for each of its last runs, newest first.

    The model and its test set go first: a run with a verdict that passed has both.
    """
    history, gate, test = context.history, outcome.gate, outcome.evaluations["test"]
    if gate.passed:
        history.store_artifact(context.name, "checkpoint", paths.checkpoint)
        history.store_artifact(context.name, "eval_data", paths.eval_data)
    means = {
        system: round(test.scores[system].get_mean(gate.metric), 6)
        for system in _SYSTEMS_IN_VERDICT
        if system in test.scores
    }
    queries = len(test.data.queries)
    verdict = Verdict(passed=gate.passed, reasons=gate.reasons, metric=gate.metric, queries=queries, scores=means)
    history.write(context.name, verdict)
    _log.info("run %s", history.read_run(context.name).summary())
    return history.summarize_last_runs()


def _read_encoder(checkpoint: Path) -> EncoderConfig:
    """Read the settings of the encoder. Raises InputError for a directory that is not a checkpoint."""
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"{checkpoint} is no checkpoint (no config.json): give the directory that finetune made")
    if not any(checkpoint.glob("*.safetensors")):
        raise InputError(f"{checkpoint} has no weights (*.safetensors): give the directory that finetune made")
    return read_encoder(checkpoint)


def _read_sets(eval_data: Path, golden_eval: Path | None) -> dict[str, BeirData]:
    sets = {"test": read_beir(eval_data)}
    if golden_eval is not None:
        sets["golden"] = read_beir(golden_eval, searched=sets["test"])
    for name, directory in (("test", eval_data), ("golden", golden_eval)):
        if name in sets:
            check_ids(sets[name], str(directory))
            data = sets[name]
            _log.info("%s set: %d queries, %d passages", name, len(data.queries), len(data.corpus))
    return sets


def _search_all(
    config: EvalConfig, checkpoint: Path, champion: Path | None, encoder: EncoderConfig, sets: BeirSets, k: int
) -> dict[str, SystemResult]:
    """Search with each system. The checkpoint comes first: it is what a user may have wrong."""
    options = EncodeOptions(
        config.encode_batch_tokens, config.embedding_cache_uri, count_processes(config.num_processes)
    )
    search = partial(search_with_encoder, sets=sets, k=k, options=options, dimensions=sorted(config.eval_dimensions))
    results: dict[str, SystemResult] = {}
    if config.eval_finetuned:
        results["finetuned"] = search(checkpoint, "fine-tuned")
    if config.eval_base:
        results["base"] = search(encoder, "base")
    if champion is not None:
        results["champion"] = search(champion, "champion")
    if config.eval_nim:
        results["nim"] = search_with_endpoint(config, sets, k)
    if config.eval_bm25:
        results["bm25"] = search_with_bm25(sets, k)
    return {system: results[system] for system in LABELS if system in results}
