"""What the cache of vectors saves: ``python -m benchmarks.embedding_cache --data BEIR_FOLDER``.

As in a run of the stages: prep encodes the training documents' passages with the base model, eval then all passages;
a second run meets the same corpus. The model is the small profile's. Seconds include loading the model and, with a
cache, hashing its weights; the vectors of every way are checked to be the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import report
from components.core import log
from components.core.retrieval.beir_data import read_beir
from components.core.retrieval.encode_texts import EncodeOptions, TextGroup, encode_texts
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name

TRAINING = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description="What the cache of vectors saves.")
    parser.add_argument("--data", type=Path, required=True, metavar="BEIR_FOLDER")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    args.tiny = False
    log.configure("cache", verbose=False)
    config = resolve_settings([by_name("prep")], profile_name="small", values={})["prep"]
    texts = [*read_beir(args.data).corpus.values()]
    trained = texts[: int(TRAINING * len(texts))]
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for run, uri in (("without a cache", None), ("with a cache, first run", folder), ("second run", folder)):
            for stage, part in (("prep", trained), ("eval, base model", texts)):
                started = time.perf_counter()
                processor = time.process_time()
                options = EncodeOptions(config.encode_batch_tokens, uri)
                (encoded,) = encode_texts(config.encoder(), [TextGroup(part, "passage", f"{run}: {stage}")], options)
                found.append(encoded.vectors)
                rows.append(
                    {
                        "run": run,
                        "stage": stage,
                        "passages": len(part),
                        "encoded": encoded.num_encoded,
                        "seconds": f"{time.perf_counter() - started:.1f}",
                        "CPU seconds": f"{time.process_time() - processor:.1f}",
                    }
                )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    for vectors in found:
        np.testing.assert_allclose(vectors, found[1][: len(vectors)], atol=1e-6)
    report.publish(f"Vectors kept: {args.data.name}, {size / 1e6:.1f} MB", rows, args)


if __name__ == "__main__":
    main()
