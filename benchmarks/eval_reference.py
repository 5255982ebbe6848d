"""Our figures against sentence-transformers and BEIR themselves: ``--data BEIR_FOLDER ... [--model DIR]``.

The model is the small profile's, with texts of up to 256 tokens as its authors publish it, unless a checkpoint is given
that has ``encoder.json`` and the files of sentence-transformers. Every metric at every cut-off must agree to four
decimals; exit code 1 when one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beir.datasets.data_loader import GenericDataLoader
from beir.retrieval.evaluation import EvaluateRetrieval
from beir.retrieval.models import SentenceBERT
from beir.retrieval.search.dense import DenseRetrievalExactSearch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from benchmarks import report
from components.core import log
from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.encode_texts import EncodeOptions
from components.eval.metrics import FAMILIES, measure, metric_name
from components.eval.systems import search_with_encoder
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name

CUTOFFS = [1, 5, 10, 100]
DECIMALS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Our evaluation against sentence-transformers and BEIR.")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="BEIR_FOLDER")
    parser.add_argument("--model", type=Path, help="checkpoint (default: the base model of the small profile)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the two references")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    args.tiny = False
    log.configure("eval", verbose=False)
    with tempfile.TemporaryDirectory() as directory:
        model = args.model or _small(Path(directory) / "small")
        rows = [row for data in args.data for row in _compare(data, model, args.batch_size)]
    report.publish("Our figures and the references'", rows, args)
    apart = [row for row in rows if row["largest difference"] and float(row["largest difference"]) >= 10**-DECIMALS]
    if apart:
        sys.exit(f"{len(apart)} of the references differ by {10**-DECIMALS} or more")


def _small(directory: Path) -> Path:
    lengths = {"query_max_length": 256, "passage_max_length": 256}
    config = resolve_settings([by_name("prep")], profile_name="small", values=lengths)["prep"]
    save_checkpoint(load_base(config.encoder()), directory)
    return directory


def _compare(folder: Path, model: Path, batch_size: int) -> list[dict[str, Any]]:
    """A row for ours and for each reference: nDCG, Recall and MRR at 10, and how far it is from ours at most."""
    data = read_beir(folder)
    found = {}
    for name, evaluate in (("ours", _ours), ("beir", _beir), ("sentence-transformers", _sentence_transformers)):
        start = time.perf_counter()
        figures = evaluate(folder, data, model, batch_size)
        found[name] = figures, time.perf_counter() - start
    ours = found["ours"][0]
    return [
        {
            "collection": folder.name,
            "queries": len(data.queries),
            "passages": len(data.corpus),
            "evaluated by": name,
            **{metric: f"{figures[metric]:.4f}" for metric in ("NDCG@10", "Recall@10", "MRR@10")},
            "metrics": len(figures),
            "largest difference": ""
            if name == "ours"
            else f"{max(abs(value - ours[metric]) for metric, value in figures.items()):.5f}",
            "seconds": f"{taken:.1f}",
        }
        for name, (figures, taken) in found.items()
    ]


def _ours(_: Path, data: BeirData, model: Path, __: int) -> dict[str, float]:
    search = search_with_encoder(model, "model", {"test": data}, max(CUTOFFS), EncodeOptions(batch_tokens=4096))
    mean = measure(data.qrels, search.rankings["test"], CUTOFFS).mean
    return {name: value for family in mean.values() for name, value in family.items()}


def _beir(folder: Path, _: BeirData, model: Path, batch_size: int) -> dict[str, float]:
    """BEIR's SentenceTransformer path and its exact search, which fails on a single query."""
    corpus, queries, qrels = GenericDataLoader(str(folder)).load(split="test")
    dense = SentenceBERT(str(model))
    config = dense.q_model.prompts
    search = DenseRetrievalExactSearch(dense, batch_size=batch_size, show_progress_bar=False)
    beir = EvaluateRetrieval(search, CUTOFFS, score_function="dot")
    if any(config.values()):
        sys.exit(f"{model}: BEIR puts no prefix before texts and this model has {config}: compare one without")
    found = beir.retrieve(corpus, queries)
    families = [*beir.evaluate(qrels, found, CUTOFFS), beir.evaluate_custom(qrels, found, CUTOFFS, metric="mrr")]
    return {name: value for family in families for name, value in family.items()}


def _sentence_transformers(_: Path, data: BeirData, model: Path, batch_size: int) -> dict[str, float]:
    """Its MAP@k divides by min(k, answers) and trec_eval's by all answers: left out where that differs."""
    relevant = {query: {name for name, score in judged.items() if score > 0} for query, judged in data.qrels.items()}
    most = max(map(len, relevant.values()))
    evaluator = InformationRetrievalEvaluator(
        data.queries,
        data.corpus,
        relevant,
        mrr_at_k=CUTOFFS,
        ndcg_at_k=CUTOFFS,
        precision_recall_at_k=CUTOFFS,
        map_at_k=CUTOFFS,
        batch_size=batch_size,
        corpus_chunk_size=50_000,
    )
    figures = evaluator(SentenceTransformer(str(model)))
    graded = any(score > 1 for judged in data.qrels.values() for score in judged.values())
    return {
        metric_name(family, k): figures[f"cosine_{family.lower()}@{k}"]
        for family in FAMILIES
        for k in CUTOFFS
        if not (family == "MAP" and k < most) and not (family == "NDCG" and graded)
    }


if __name__ == "__main__":
    main()
