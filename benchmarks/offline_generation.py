"""Which offline method to choose: ``python -m benchmarks.offline_generation BEIR_FOLDER ... [--seeds N]``.

For each method of the offline generator: pairs from the passages of a test collection, the small profile fine-tuned on
them for one epoch by the stages' own programs, and the collection's own questions, which nobody saw in training, asked
of the base and of the tuned model. Give collections with questions by people; none comes with the repository.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks import report
from components.command_line.cli import parse
from components.core import log
from components.core.retrieval.beir_data import read_beir
from components.sdg.component import SdgConfig

METHODS = get_args(SdgConfig.model_fields["offline_method"].annotation)
FEWEST_CHARACTERS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Offline methods of sdg, measured on test collections.")
    parser.add_argument("collections", nargs="+", type=Path, metavar="BEIR_FOLDER")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="40 passages, to see that everything runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    rows = [_row(collection, method, args) for collection in args.collections for method in METHODS]
    report.publish("Offline methods, one epoch of the small profile", rows, args)


def _row(collection: Path, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Mean over the seeds, with the least and the greatest where there are several."""
    runs = [_run(collection, method, seed, 40 if args.tiny else None) for seed in range(42, 42 + args.seeds)]
    base = runs[0]
    return {
        "collection": collection.name,
        "offline_method": method,
        "pairs": base["pairs"],
        "nDCG@10 base": f"{base['base_ndcg_at_10']:.3f}",
        "nDCG@10 tuned": _spread([run["finetuned_ndcg_at_10"] for run in runs]),
        "gain": f"{_mean([run['finetuned_ndcg_at_10'] for run in runs]) - base['base_ndcg_at_10']:+.3f}",
        "Recall@10 base": f"{base['base_recall_at_10']:.3f}",
        "Recall@10 tuned": _spread([run["finetuned_recall_at_10"] for run in runs]),
        "seconds": round(_mean([run["seconds"] for run in runs])),
    }


def _run(collection: Path, method: str, seed: int, limit: int | None) -> dict[str, float]:
    """The figures of one generation, training and evaluation; ``seconds`` is the wall time up to the model."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        _write_corpus(collection, work / "corpus", limit)
        started = time.perf_counter()
        _stage("sdg", work, f"offline_method={method}", f"seed={seed}")
        # The test questions are the collection's own: hold back as little as the split allows.
        _stage("prep", work, "train_ratio=0.95", "val_ratio=0", "test_ratio=0.05")
        _stage("finetune", work, f"seed={seed}")
        seconds = time.perf_counter() - started
        _stage("eval", work, "--eval-data", str(collection), "eval_bm25=false", "k_values=[10]")
        return {**_figures("sdg", work), **_figures("eval", work), "seconds": seconds}


def _write_corpus(collection: Path, corpus: Path, limit: int | None) -> None:
    """Every passage as a document of its own, with its title as BEIR joins it."""
    corpus.mkdir()
    texts = [text for text in read_beir(collection).corpus.values() if len(text) >= FEWEST_CHARACTERS]
    for number, text in enumerate(texts[:limit]):
        (corpus / f"{number:06}.txt").write_text(text, encoding="utf-8")


def _stage(stage: str, work: Path, *arguments: str) -> None:
    log.configure(stage, verbose=False)
    parse([stage, "--profile", "small", "--work", str(work), *arguments]).run()


def _figures(stage: str, work: Path) -> dict[str, float]:
    return json.loads((work / f"{stage}_metrics.json").read_text(encoding="utf-8"))["metrics"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> str:
    return f"{_mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
