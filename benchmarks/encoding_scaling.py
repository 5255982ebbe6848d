"""Mining and evaluation on one GPU and on two: ``python -m benchmarks.encoding_scaling [--tiny] [--json FILE]``.

prep and eval run as commands with ``num_processes`` 1 and 2, on 40,960 passages and 4,096 questions and a model of the
1B shape with random weights; each number of processes has an embedding cache of its own. Then everything that came out
is compared: vectors, splits, negatives and figures. Exit code 1 when they differ by more than rounding. Random weights
give thousands of passages almost the same score, and rounding chooses among them: what counts is that the negatives of
each run are as good by the other's vectors as the other's own. Without GPUs two processes share the cores: the times
say nothing then.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from benchmarks import report
from benchmarks.workload import LLAMA_1B, TINY, Shape, passages, text, write_base
from components.core.retrieval.embedding_cache import text_key

TRAINING_FILE = "train_mined.automodel_unrolled.json"
MINED_BY = "spaces.json"
# Limits of what another batch of the same texts may change, in bfloat16.
LEAST_COSINE = 0.999
MOST_OF_SCORE = 0.005
MOST_OF_METRIC = 0.01


def main() -> None:
    args = report.arguments("Encoding for mining and evaluation on one GPU and on two.")
    shape, count, asked = (TINY, 400, 80) if args.tiny else (LLAMA_1B, 40_960, 4_096)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_base(shape, folder / "base")
        _write_checkpoint(folder / "base", folder / "checkpoint")
        _write_records(shape, count, asked, folder / "qa_pairs")
        rows = [_run(folder, processes) for processes in (1, 2)]
        found = _compare(folder / "1", folder / "2")
    for row in rows:
        row["times one GPU"] = round(row["passages/s"] / rows[0]["passages/s"], 2)
    report.publish(f"Mining and evaluation on two GPUs, {count:,} passages, {asked:,} questions", rows, args)
    print()
    for what, (value, limit, ok) in found.items():
        print(f"{'same' if ok else 'DIFFERS'}: {what}: {value} (limit {limit})")
    print(f"{torch.cuda.device_count()} GPUs visible")
    if not all(ok for _, _, ok in found.values()):
        sys.exit(1)


def _run(folder: Path, processes: int) -> dict[str, Any]:
    """prep, then eval on its test set, in ``folder / processes``."""
    work = folder / str(processes)
    given = [f"num_processes={processes}", f"embedding_cache_uri={work / 'cache'}"]
    prep_settings = [f"base_model={folder / 'base'}", "near_duplicate_threshold=null"]
    prep = _seconds(["prep", "--work", work, "--qa-pairs", folder / "qa_pairs", *prep_settings, *given])
    # Of the base model: its questions and its passages.
    (work / MINED_BY).write_text(json.dumps([path.name for path in (work / "cache").iterdir()]), encoding="utf-8")
    eval_settings = ["--checkpoint", folder / "checkpoint", "eval_bm25=false"]
    evaluation = _seconds(["eval", "--work", work, *eval_settings, *given])
    cost = _json(work / "eval_results" / "eval_results.json")["cost"]["finetuned"]
    return {
        "GPUs": processes,
        "prep s": round(prep, 1),
        "eval s": round(evaluation, 1),
        "passages/s": cost["passages_per_second"],
        "ms per query": cost["milliseconds_per_query"],
    }


def _seconds(arguments: list[Any]) -> float:
    argv = [sys.executable, "-m", "components", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    print(done.stderr[-1500:], file=sys.stderr, flush=True)
    return time.perf_counter() - started


def _compare(one: Path, two: Path) -> dict[str, tuple[Any, Any, bool]]:
    """What was compared -> what was found, what was allowed, and whether it is within that."""
    cosine, texts, same_texts = _vectors(one / "cache", two / "cache")
    same_rows, apart, worse = _negatives(one, two)
    same_test = all(
        (one / "eval_data" / name).read_bytes() == (two / "eval_data" / name).read_bytes()
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
    )
    first, second = (_json(work / "eval_results" / "eval_results.json") for work in (one, two))
    metrics = _metrics(first, second)
    passed = [results["gate"]["passed"] for results in (first, second)]
    return {
        f"texts with a vector, {texts:,}": (same_texts, True, same_texts),
        "least cosine of a vector to its like": (cosine, LEAST_COSINE, cosine >= LEAST_COSINE),
        "test set, byte by byte": (same_test, True, same_test),
        "training questions and their positives": (same_rows, True, same_rows),
        "largest difference of a negative's score, rank by rank": (apart, MOST_OF_SCORE, apart <= MOST_OF_SCORE),
        "how far a negative lies below the other's, by its vectors": (worse, MOST_OF_SCORE, worse <= MOST_OF_SCORE),
        "largest difference of a metric": (max(metrics), MOST_OF_METRIC, max(metrics) <= MOST_OF_METRIC),
        "verdict of the gate": (passed[1], passed[0], passed[0] == passed[1]),
    }


def _metrics(one: dict[str, Any], two: dict[str, Any]) -> list[float]:
    """By how much each metric differs; both models' nDCG@10 are shown."""
    for system in ("base", "finetuned"):
        print(f"nDCG@10, {system}:", *(results[system]["NDCG"]["NDCG@10"] for results in (one, two)))
    return [
        round(abs(value - two[system][family][name]), 5)
        for system in ("base", "finetuned")
        for family, values in one[system].items()
        for name, value in values.items()
    ]


def _vectors(one: Path, two: Path) -> tuple[float, int, bool]:
    """Least cosine of two vectors of one text, number of texts, and whether both caches hold the same ones."""
    spaces = [_cached(cache) for cache in (one, two)]
    least, texts = 1.0, 0
    for space, (keys, vectors) in spaces[0].items():
        others, other = spaces[1].get(space, ([], vectors[:0]))
        place = {key: row for row, key in enumerate(others)}
        if set(keys) != set(others):
            return 0.0, texts, False
        matched = other[[place[key] for key in keys]]
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(matched, axis=1)
        least = min(least, float((np.einsum("ij,ij->i", vectors, matched) / lengths).min()))
        texts += len(keys)
    return round(least, 6), texts, spaces[0].keys() == spaces[1].keys()


def _cached(cache: Path) -> dict[str, tuple[list[bytes], np.ndarray]]:
    """The texts' keys and vectors by space, as components/core/retrieval/embedding_cache.py lays them down."""
    found: dict[str, tuple[list[bytes], list[np.ndarray]]] = {}
    for path in sorted(cache.rglob("*.keys")):
        about, _, keys = path.read_bytes().partition(b"\n")
        vectors = np.fromfile(path.with_suffix(".vectors"), dtype="<f4").reshape(-1, json.loads(about)["dimension"])
        names, parts = found.setdefault(path.parent.name, ([], []))
        names += [keys[at : at + 16] for at in range(0, len(keys), 16)]
        parts.append(vectors)
    return {space: (names, np.concatenate(parts)) for space, (names, parts) in found.items()}


def _negatives(one: Path, two: Path) -> tuple[bool, float, float]:
    """Of the training rows of two runs: whether questions, positives and numbers of negatives are the same, the largest
    difference of scores of the same rank, and how much less a negative of one scores, by the other's vectors, than the
    other's last."""
    rows = [_json(work / "training_data" / TRAINING_FILE)["data"] for work in (one, two)]
    shapes = [[(row["question"], row["pos_doc"][0]["id"], len(row["neg_doc"])) for row in own] for own in rows]
    if shapes[0] != shapes[1]:
        return False, math.inf, math.inf
    table = pq.read_table(one / "training_data" / "corpus" / "train.parquet").to_pydict()
    passages = dict(zip(table["id"], table["text"], strict=True))
    apart = worse = 0.0
    vectors = [_by_key(work) for work in (one, two)]
    for pair in zip(*rows, strict=True):
        scores = [[negative["score"] for negative in row["neg_doc"]] for row in pair]
        apart = max([apart, *(abs(a - b) for a, b in zip(*scores, strict=True))])
        for row, known, own in zip(pair, reversed(vectors), reversed(scores), strict=True):
            question = known[text_key(row["question"])]
            found = [float(question @ known[text_key(passages[negative["id"]])]) for negative in row["neg_doc"]]
            worse = max(worse, min(own, default=0.0) - min(found, default=0.0))
    _show_spread(rows[0], passages, vectors[0])
    return True, round(apart, 6), round(worse, 6)


def _show_spread(rows: list[dict[str, Any]], passages: dict[str, str], known: dict[bytes, np.ndarray]) -> None:
    """How much the last negative of a question scores above a passage by chance: what the comparison can tell apart."""
    some = np.stack([known[text_key(text)] for text in list(passages.values())[:512]])
    above = []
    for row in rows[:256]:
        if row["neg_doc"]:
            by_chance = float(np.median(some @ known[text_key(row["question"])]))
            above.append(min(negative["score"] for negative in row["neg_doc"]) - by_chance)
    print(f"last negative above the median passage, median of {len(above)} questions: {np.median(above):.4f}")


def _by_key(work: Path) -> dict[bytes, np.ndarray]:
    """The vectors of all texts that prep encoded."""
    spaces = _cached(work / "cache")
    return {key: row for space in _json(work / MINED_BY) for key, row in zip(*spaces[space], strict=True)}


def _write_checkpoint(base: Path, directory: Path) -> None:
    """``base`` with a little noise on its weights: a model of its own."""
    directory.mkdir()
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (directory / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(7)
    weights = load_file(base / "model.safetensors")
    for values in weights.values():
        values += 0.1 * values.std().nan_to_num() * torch.randn(values.shape, generator=generator).to(values.dtype)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _write_records(shape: Shape, count: int, asked: int, directory: Path) -> None:
    """``count`` documents of one passage; about each of the first ``asked`` a question, three of its words in nine."""
    directory.mkdir()
    noise = passages(shape, asked, seed=3)
    with (directory / "records.jsonl").open("w", encoding="utf-8") as out:
        for number, ids in enumerate(passages(shape, count)):
            if number < asked:
                query = text(ids[1:4] + noise[number][:6])
                record = {"query": query, "positive": text(ids), "document": str(number)}
            else:
                record = {"id": str(number), "text": text(ids)}
            out.write(json.dumps(record) + "\n")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
