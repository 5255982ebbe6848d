"""The figures of an evaluation as files and as metrics of the stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.core.encoder.config import EncoderConfig
from components.eval.component import EvalConfig
from components.eval.endpoint_drift import compare_with_endpoint
from components.eval.gate import EvalGate
from components.eval.metrics import Evaluation, Scores
from components.eval.slices import Slice
from components.eval.systems import SystemResult

RESULTS_FILE = "eval_results.json"
PER_QUERY_FILE = "per_query.json"
SLICES_FILE = "slices.json"


def write_results(
    directory: Path,
    config: EvalConfig,
    encoder: EncoderConfig,
    evaluations: Mapping[str, Evaluation],
    systems: Mapping[str, SystemResult],
    slices: Mapping[str, tuple[Slice, ...]],
    gate: EvalGate,
) -> None:
    """Write the artifact ``eval_results``: all metrics, those by kind of query, and those of every query."""
    directory.mkdir(parents=True)
    _write_json(directory / RESULTS_FILE, _to_results(config, encoder, evaluations, systems, gate))
    _write_json(directory / SLICES_FILE, {name: [asdict(kind) for kind in kinds] for name, kinds in slices.items()})
    _write_json(directory / PER_QUERY_FILE, {name: _list_by_query(data) for name, data in evaluations.items()})


def _to_results(
    config: EvalConfig,
    encoder: EncoderConfig,
    evaluations: Mapping[str, Evaluation],
    systems: Mapping[str, SystemResult],
    gate: EvalGate,
) -> dict[str, Any]:
    test = evaluations["test"]
    results: dict[str, Any] = {system: scores.mean for system, scores in test.scores.items()}
    if "golden" in evaluations:
        golden = evaluations["golden"]
        results["golden"] = {"queries": len(golden.data.queries), "passages": len(golden.data.corpus)}
        results["golden"] |= {system: scores.mean for system, scores in golden.scores.items()}
    if test.shortened:
        results["dimensions"] = {
            str(dimension): {system: scores.mean for system, scores in by_system.items()}
            for dimension, by_system in test.shortened.items()
        }
    results["cost"] = {
        system: asdict(result.cost) | {"bytes_per_passage": result.cost.bytes_per_passage}
        for system, result in systems.items()
        if result.cost
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
        "k_values": config.list_cutoffs(),
        "encoder": encoder.model_dump(mode="json"),
        "nim": {
            "url": config.nim_url,
            "model": config.nim_model,
            "api_backend": config.embedding_api_backend,
            "repeated": systems["nim"].repeated,
        }
        if config.eval_nim
        else None,
        "nim_metric_comparison": [
            asdict(drift) | {"within": drift.is_within_tolerance}
            for drift in compare_with_endpoint(config, test.scores)
        ],
    }
    return results


def _list_by_query(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """Return query -> system -> metric -> value."""
    return {
        query: {system: scores.per_query[query] for system, scores in evaluation.scores.items()}
        for query in evaluation.data.queries
    }


def collect_metrics(evaluations: Mapping[str, Evaluation], gate: EvalGate) -> dict[str, float | int | bool | str]:
    """Return what the stage reports: the gate's decision, and all metrics by set and system."""
    metrics: dict[str, float | int | bool | str] = {"passed": gate.passed}
    for name, evaluation in evaluations.items():
        before = "" if name == "test" else f"{name}_"
        metrics[f"{before}queries"] = len(evaluation.data.queries)
        for system, scores in evaluation.scores.items():
            metrics |= {f"{before}{system}_{key}": value for key, value in _flatten(scores).items()}
    if gate.gain is not None and gate.interval is not None:
        metrics |= {"gain": gate.gain, "gain_low": gate.interval[0], "gain_high": gate.interval[1]}
    if gate.p_value is not None:
        metrics["gain_p_value"] = gate.p_value
    return metrics


def _flatten(scores: Scores) -> dict[str, float]:
    """Return ``{"ndcg_at_10": 0.61, ...}``."""
    return {
        f"{family.lower()}_at_{name.partition('@')[2]}": value
        for family, values in scores.mean.items()
        for name, value in values.items()
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
