"""How much memory large corpora take: ``python -m benchmarks.generation_corpus``.

Two corpora through ``python -m components sdg generator=offline`` in a process that may have 2 GiB of memory: one
with a file of 500 MB among small ones (it is left out, and never read), one of 100,000 small files.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

LIMIT_GIB = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of sdg over large corpora.")
    parser.add_argument("--files", type=int, default=100_000, help="small files (default: 100,000)")
    parser.add_argument("--tiny", action="store_true", help="1,000 files, to see that everything runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    rows = [_row("a file of 500 MB and 100 small ones", 100, 500), _row("small files", _files(args), 0)]
    report.publish(f"sdg, offline, within {LIMIT_GIB} GiB", rows, args)


def _files(args: argparse.Namespace) -> int:
    return 1000 if args.tiny else args.files


def _row(name: str, files: int, huge_mb: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        written = _write(work / "corpus", files, huge_mb)
        started = time.perf_counter()
        code = subprocess.run(
            [sys.executable, "-m", "components", "sdg", "--work", directory, "generator=offline", "num_pairs=1"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_GIB * 2**30, LIMIT_GIB * 2**30)),
            check=False,
        ).returncode
        seconds = time.perf_counter() - started
        metrics = json.loads((work / "sdg_metrics.json").read_text())["metrics"] if code == 0 else {}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "corpus": name,
        "files": files,
        "MB": round(written / 1e6),
        "exit code": code,
        "seconds": round(seconds),
        "most memory so far, MB": round(peak / 1e3),
        **{key: metrics.get(key) for key in ("documents", "passages", "pairs", "skipped_files")},
    }


def _write(corpus: Path, files: int, huge_mb: int) -> int:
    """Files of about 1 kB of made-up words, and one of ``huge_mb`` MB; returns the bytes."""
    random_ = random.Random(0)
    words = ["".join(random_.choices("abcdefghijklmnop", k=random_.randint(3, 9))) for _ in range(20_000)]
    written = 0
    for number in range(files):
        folder = corpus / f"{number // 1000:03}"
        folder.mkdir(parents=True, exist_ok=True)
        sentences = (" ".join(random_.choices(words, k=12)).capitalize() + "." for _ in range(12))
        written += (folder / f"{number:06}.txt").write_text(" ".join(sentences), encoding="utf-8")
    if huge_mb:
        with (corpus / "huge.txt").open("wb") as out:
            block = (" ".join(words) + ".\n").encode()
            while written < huge_mb * 1_000_000:
                written += out.write(block)
    return written


if __name__ == "__main__":
    main()
