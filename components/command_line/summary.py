"""The summary of a local run: what was gained, what is served, how to query it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.core.history import read_run_context
from components.core.stage import Stage
from components.recipe.plan import Plan

_SHOWN = (("NDCG", "NDCG@10", "nDCG@10"), ("Recall", "Recall@10", "Recall@10"))


def summarize(work: Path, plan: Plan) -> str:
    """Describe the artifacts that a run left in ``work``: figures, gate, address of the service."""
    done: list[Stage] = []
    for stage in plan.stages:
        done.append(stage)
        if stage.gate and not _read(work / f"{stage.metrics_artifact}.json")["results"][stage.gate.result]:
            break
    outputs = {name for stage in done for name in stage.outputs}
    lines = [f"Done: {', '.join(stage.name for stage in done)}. Artifacts: {work}", ""]
    if run := read_run_context(work / "past_runs" if "past_runs" in outputs else None):
        lines += [f"Run {run.history.read_run(run.name).summary()}", ""]
    if "eval_results" in outputs:
        results = _read(work / "eval_results" / "eval_results.json")
        lines += [*_describe_quality(results), "", *_describe_gate(results), f"Report: {work / 'report.html'}"]
    if "exported_model" in outputs:
        parity = _read(work / "export_metrics.json")["metrics"]
        lines.append(
            f"ONNX against PyTorch: mean cosine {parity['parity_mean_cosine']:.6f}, "
            f"lowest {parity['parity_min_cosine']:.6f}"
        )
    if "deployment" in outputs:
        lines += _describe_service(work)
    return "\n".join(lines)


def _describe_quality(results: dict[str, Any]) -> list[str]:
    """Return a line for each test set and metric: base and fine-tuned model side by side."""
    sets = [(f"test set, {results['_metadata']['queries']} queries", results)]
    if "golden" in results:
        sets.append((f"golden set, {results['golden']['queries']} queries", results["golden"]))
    width = max(len(title) for title, _ in sets)
    return [
        f"  {title:<{width}}  {label:<9}  {_describe_change(models, family, name)}"
        for title, models in sets
        for family, name, label in _SHOWN
    ]


def _describe_change(models: dict[str, Any], family: str, name: str) -> str:
    base, tuned = (models.get(model, {}).get(family, {}).get(name) for model in ("base", "finetuned"))
    if base is None or tuned is None:
        return f"{tuned if base is None else base}"
    return f"base {base:.4f}  fine-tuned {tuned:.4f}  ({tuned - base:+.4f})"


def _describe_gate(results: dict[str, Any]) -> list[str]:
    gate = results["gate"]
    verdict = "passed" if gate["passed"] else "NOT passed, nothing was exported or deployed"
    return [f"Quality gate {verdict}:", *(f"  {reason}" for reason in gate["reasons"])]


def _describe_service(work: Path) -> list[str]:
    deployment = _read(work / "deployment" / "deployment.json")
    figures = _read(work / "deploy_metrics.json")["metrics"]
    body = json.dumps({"model": deployment["model"], "input": ["how do I loop over a list"], "input_type": "query"})
    proof = "Nothing was verified: the objects are in deployment/manifests"
    if "served_mean_cosine" in figures:
        mean, lowest = figures["served_mean_cosine"], figures["served_min_cosine"]
        proof = f"Served against PyTorch: mean cosine {mean:.6f}, lowest {lowest:.6f}"
    return [
        proof,
        f"Service: {deployment['endpoint']}",
        "",
        f"curl -s {deployment['endpoint']}/v1/embeddings -H 'Content-Type: application/json' -d '{body}'",
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
