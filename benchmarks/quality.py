"""Does our training make as good a model as sentence-transformers'? ``--data BEIR_FOLDER ... [--seeds N]``.

The small profile's model on half of each collection's questions, tested on the other half, by both: the same triples of
question, answer and hard negative, batch size, steps, rate, schedule and loss (InfoNCE with in-batch negatives,
temperature 0.05). Each seed is another order of the examples. The question is whether the difference of the means is
within what the order alone changes. Runs on a CPU, in minutes; texts are cut to ``--length`` tokens for that.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.training_args import BatchSamplers

from benchmarks import report
from components.command_line.cli import parse
from components.core import log
from components.core.encoder.checkpoint import load_base, load_checkpoint, save_checkpoint
from components.core.encoder.model import Encoder
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.retrieval.encode_texts import EncodeOptions
from components.eval.metrics import measure
from components.eval.systems import search_with_encoder
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name

Triple = tuple[str, str, str]
TEMPERATURE, RATE, BATCH = 0.05, 4e-5, 16


def main() -> None:
    parser = argparse.ArgumentParser(description="nDCG@10 after our training and after sentence-transformers'.")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="BEIR_FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--length", type=int, default=64, help="longest text in tokens")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    args.tiny = False
    log.configure("finetune")
    rows = [_collection(folder, args) for folder in args.data]
    report.publish(f"nDCG@10 of {args.seeds} seeds each", rows, args)
    if any(row["apart"] > row["allowed"] for row in rows):
        sys.exit("the means are further apart than the seeds are")


def _collection(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    lengths = {"query_max_length": args.length, "passage_max_length": args.length}
    config = resolve_settings([by_name("prep")], profile_name="small", values=lengths)["prep"].encoder()
    base = load_base(config)
    data = read_beir(folder)
    train, test = _split(data)
    triples = _triples(data, train, base)
    found: dict[str, list[float]] = {"ours": [], "sentence-transformers": []}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_checkpoint(base, work / "base")
        for seed in range(args.seeds):
            for name, train_with in (("ours", _ours), ("sentence-transformers", _sentence_transformers)):
                started = time.perf_counter()
                trained = train_with(triples, work, args, seed)
                found[name].append(_ndcg(trained, test))
                took = time.perf_counter() - started
                print(f"{folder.name}: {name}, seed {seed}: {found[name][-1]:.4f} in {took:.0f} s", flush=True)
        base_value = _ndcg(work / "base", test)
    means = {name: statistics.fmean(values) for name, values in found.items()}
    spread = max(statistics.stdev(values) for values in found.values())
    return {
        "collection": folder.name,
        "triples": len(triples),
        "test questions": len(test.queries),
        "base": f"{base_value:.4f}",
        **{name: f"{means[name]:.4f} ({' '.join(f'{v:.4f}' for v in values)})" for name, values in found.items()},
        "apart": round(abs(means["ours"] - means["sentence-transformers"]), 4),
        "standard deviation of seeds": round(spread, 4),
        # Two means of n values each differ by this much 95 times of 100 when there is nothing between them.
        "allowed": round(2 * spread * (2 / args.seeds) ** 0.5, 4),
    }


def _split(data: BeirData) -> tuple[list[str], BeirData]:
    names = sorted(data.queries)
    random.Random(0).shuffle(names)
    train, test = names[: len(names) // 2], names[len(names) // 2 :]
    kept = {name: data.queries[name] for name in test}
    return train, replace(data, queries=kept, qrels={name: data.qrels[name] for name in test})


def _triples(data: BeirData, train: list[str], base: Encoder) -> list[Triple]:
    """Each question with an answer and the passage that the base model likes best of those that are none."""
    names = list(data.corpus)
    passages = base.encode([data.corpus[name] for name in names], "passage")
    queries = base.encode([data.queries[name] for name in train], "query")
    triples = []
    for name, scores in zip(train, queries @ passages.T, strict=True):
        answers = {passage for passage, score in data.qrels[name].items() if score > 0}
        ranked = [names[place] for place in np.argsort(-scores)]
        hardest = next(passage for passage in ranked if passage not in answers)
        best = next(passage for passage in ranked if passage in answers)
        triples.append((data.queries[name], data.corpus[best], data.corpus[hardest]))
    return triples


def _ours(triples: list[Triple], work: Path, args: argparse.Namespace, seed: int) -> Path:
    data = work / f"data-{seed}"
    (data / "corpus").mkdir(parents=True)
    texts = {
        text: str(number) for number, text in enumerate(dict.fromkeys(t for triple in triples for t in triple[1:]))
    }
    rows = [
        {"question": query, "pos_doc": [{"id": texts[positive]}], "neg_doc": [{"id": texts[negative]}]}
        for query, positive, negative in triples
    ]
    content = {"corpus": {"path": "./corpus/"}, "data": rows}
    (data / "train_mined.automodel_unrolled.json").write_text(json.dumps(content), encoding="utf-8")
    pq.write_table(pa.table({"id": list(texts.values()), "text": list(texts)}), data / "corpus" / "train.parquet")
    given = {
        "query_max_length": args.length,
        "passage_max_length": args.length,
        "num_epochs": args.epochs,
        "global_batch_size": BATCH,
        "local_batch_size": BATCH,
        "learning_rate": RATE,
        "temperature": TEMPERATURE,
        "seed": seed,
    }
    argv = ["finetune", "--profile", "small", "--training-data", str(data), "--work", str(work / f"ours-{seed}")]
    parse([*argv, *(f"{name}={value}" for name, value in given.items())]).run()
    return work / f"ours-{seed}" / "checkpoint"


def _sentence_transformers(triples: list[Triple], work: Path, args: argparse.Namespace, seed: int) -> Path:
    """Its trainer as its documentation shows it; no question twice in a batch, which ours masks instead."""
    model = SentenceTransformer(str(work / "base"), device="cpu")
    model.max_seq_length = args.length
    columns = dict(zip(("anchor", "positive", "negative"), map(list, zip(*triples, strict=True)), strict=True))
    steps = args.epochs * -(-len(triples) // BATCH)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work / "trainer"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=min(5, steps // 10),
        weight_decay=0.01,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        seed=seed,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train()
    target = work / f"theirs-{seed}"
    encoder = load_checkpoint(work / "base")
    encoder.backbone.load_state_dict(model[0].auto_model.state_dict())
    save_checkpoint(encoder, target)
    return target


def _ndcg(checkpoint: Path, data: BeirData) -> float:
    search = search_with_encoder(checkpoint, "model", {"test": data}, 10, EncodeOptions(batch_tokens=4096))
    return measure(data.qrels, search.rankings["test"], [10]).mean["NDCG"]["NDCG@10"]


if __name__ == "__main__":
    main()
