"""eval: search the test sets with each system, measure, decide the gate, write the report."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from components.core.distributed.launch import count_processes
from components.core.encoder.config import EncoderConfig, read_encoder
from components.core.errors import InputError
from components.core.history import read_run_context
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.encode_texts import EncodeOptions
from components.eval.component import EvalConfig
from components.eval.drift import drift
from components.eval.gate import Gate, decide
from components.eval.metrics import Evaluation, Scores, check_ids, measure, metric_name
from components.eval.recurring import record
from components.eval.report import LABELS, build_report
from components.eval.slices import slices
from components.eval.systems import (
    BeirSets,
    Search,
    check_endpoint,
    search_with_bm25,
    search_with_encoder,
    search_with_endpoint,
)

RESULTS_FILE = "eval_results.json"
PER_QUERY_FILE = "per_query.json"
SLICES_FILE = "slices.json"
_log = logging.getLogger(__name__)


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
    """Evaluate, write ``eval_results`` and ``report``, return the figures and ``passed``.

    The history of ``past_runs`` gets the verdict. A gate that does not pass is a
    result, not an error. Raises InputError for a checkpoint or test set that is none,
    ActionNeeded and Transient for an endpoint that does not answer.
    """
    return _evaluate(config, checkpoint, eval_data, golden_eval, champion, past_runs, eval_results, report)


def _evaluate(
    config: EvalConfig,
    checkpoint: Path,
    eval_data: Path,
    golden_eval: Path | None,
    champion: Path | None,
    past_runs: Path | None,
    eval_results: Path,
    report: Path,
) -> dict[str, float | int | bool | str]:
    encoder = _encoder_of(checkpoint)
    if champion is not None:
        _encoder_of(champion)
    sets = _read_sets(eval_data, golden_eval)
    if config.eval_nim:
        check_endpoint(config)
    cutoffs = sorted({*config.k_values, config.gate_k})
    searches = _search(config, checkpoint, champion, encoder, sets, max(cutoffs))
    evaluations = {
        name: Evaluation(
            data,
            {system: found.runs[name] for system, found in searches.items()},
            {system: measure(data.qrels, found.runs[name], cutoffs) for system, found in searches.items()},
            {
                dimension: {
                    system: measure(data.qrels, found.shortened[dimension][name], cutoffs)
                    for system, found in searches.items()
                    if dimension in found.shortened
                }
                for dimension in sorted(config.eval_dimensions)
            },
        )
        for name, data in sets.items()
    }
    metric = metric_name(config.gate_metric, config.gate_k)
    kinds = {name: slices(found.data, found.scores, metric) for name, found in evaluations.items()}
    golden = evaluations["golden"].scores if "golden" in evaluations else None
    gate = decide(config, evaluations["test"].scores, len(sets["test"].queries), kinds["test"], golden)
    for reason in gate.reasons:
        _log.info("gate %s: %s", "passed" if gate.passed else "not passed", reason)
    costs = {system: found.cost for system, found in searches.items() if found.cost}
    eval_results.mkdir(parents=True)
    _write_json(eval_results / RESULTS_FILE, _results(config, encoder, evaluations, searches, gate))
    _write_json(eval_results / SLICES_FILE, {name: [asdict(one) for one in found] for name, found in kinds.items()})
    _write_json(eval_results / PER_QUERY_FILE, {name: _per_query(found) for name, found in evaluations.items()})
    runs: list[str] = []
    if context := read_run_context(past_runs):
        runs = record(context, gate, evaluations["test"].scores, len(sets["test"].queries), checkpoint, eval_data)
    report.write_text(build_report(config, encoder, evaluations, costs, gate, cutoffs, runs), encoding="utf-8")
    return _metrics(evaluations, gate)


def _encoder_of(checkpoint: Path) -> EncoderConfig:
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


def _search(
    config: EvalConfig, checkpoint: Path, champion: Path | None, encoder: EncoderConfig, sets: BeirSets, k: int
) -> dict[str, Search]:
    """What each system found. The checkpoint comes first: it is what a user may have wrong."""
    options = EncodeOptions(
        config.encode_batch_tokens, config.embedding_cache_uri, count_processes(config.num_processes)
    )
    search = partial(search_with_encoder, sets=sets, k=k, options=options, dimensions=sorted(config.eval_dimensions))
    runs = {}
    if config.eval_finetuned:
        runs["finetuned"] = search(checkpoint, "fine-tuned")
    if config.eval_base:
        runs["base"] = search(encoder, "base")
    if champion is not None:
        runs["champion"] = search(champion, "champion")
    if config.eval_nim:
        runs["nim"] = search_with_endpoint(config, sets, k)
    if config.eval_bm25:
        runs["bm25"] = search_with_bm25(sets, k)
    return {system: runs[system] for system in LABELS if system in runs}


def _results(
    config: EvalConfig,
    encoder: EncoderConfig,
    evaluations: dict[str, Evaluation],
    searches: dict[str, Search],
    gate: Gate,
) -> dict[str, Any]:
    test = evaluations["test"]
    results: dict[str, Any] = {system: scores.mean for system, scores in test.scores.items()}
    if "golden" in evaluations:
        golden = evaluations["golden"]
        results["golden"] = {"queries": len(golden.data.queries), "passages": len(golden.data.corpus)}
        results["golden"] |= {system: scores.mean for system, scores in golden.scores.items()}
    if test.shortened:
        results["dimensions"] = {
            str(dimension): {system: scores.mean for system, scores in found.items()}
            for dimension, found in test.shortened.items()
        }
    results["cost"] = {
        system: asdict(found.cost) | {"bytes_per_passage": found.cost.bytes_per_passage}
        for system, found in searches.items()
        if found.cost
    }
    results["gate"] = {
        "passed": gate.passed,
        "reasons": list(gate.reasons),
        "metric": gate.metric,
        "min_gain": config.min_gain,
        "gain": gate.gain,
        "gain_95_percent_interval": list(gate.interval) if gate.interval else None,
        "p_value": gate.p_value,
    }
    results["_metadata"] = {
        "queries": len(test.data.queries),
        "passages": len(test.data.corpus),
        "judged": test.data.level,
        "k_values": sorted({*config.k_values, config.gate_k}),
        "encoder": encoder.model_dump(mode="json"),
        "nim": {
            "url": config.nim_url,
            "model": config.nim_model,
            "api_backend": config.embedding_api_backend,
            "repeated": searches["nim"].repeated,
        }
        if config.eval_nim
        else None,
        "nim_metric_comparison": [asdict(one) | {"within": one.within} for one in drift(config, test.scores)],
    }
    return results


def _per_query(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """Query -> system -> metric -> value."""
    return {
        query: {system: scores.per_query[query] for system, scores in evaluation.scores.items()}
        for query in evaluation.data.queries
    }


def _metrics(evaluations: dict[str, Evaluation], gate: Gate) -> dict[str, float | int | bool | str]:
    metrics: dict[str, float | int | bool | str] = {"passed": gate.passed}
    for name, evaluation in evaluations.items():
        before = "" if name == "test" else f"{name}_"
        metrics[f"{before}queries"] = len(evaluation.data.queries)
        for system, scores in evaluation.scores.items():
            metrics |= {f"{before}{system}_{key}": value for key, value in _flat(scores).items()}
    if gate.gain is not None and gate.interval is not None:
        metrics |= {"gain": gate.gain, "gain_low": gate.interval[0], "gain_high": gate.interval[1]}
    if gate.p_value is not None:
        metrics["gain_p_value"] = gate.p_value
    return metrics


def _flat(scores: Scores) -> dict[str, float]:
    """``{"ndcg_at_10": 0.61, ...}``"""
    return {
        f"{family.lower()}_at_{name.partition('@')[2]}": value
        for family, values in scores.mean.items()
        for name, value in values.items()
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
