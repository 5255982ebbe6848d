"""50 kills of sdg: ``python -m benchmarks.generation_kills [--kills N]``.

A run against a scripted LLM is killed with SIGKILL at random points, again and again; each time a new process starts on
an empty disk, and only the ledger in a bucket (an S3 server over HTTP) stays. Fails when an answer that was in the
bucket is paid for again, or when the last data set differs by a byte from that of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks import report
from tests.sdg.kills import kill_often
from tests.sdg.llm_server import llm_server
from tests.storage.s3_server import s3_server


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill sdg often, with its ledger in a bucket.")
    parser.add_argument("--kills", type=int, default=50, help="default: 50")
    parser.add_argument("--tiny", action="store_true", help="3 kills")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    started = time.perf_counter()
    with llm_server() as server, s3_server() as bucket, tempfile.TemporaryDirectory() as directory:
        os.environ.update(bucket.environment, NVIDIA_API_KEY="none")
        row = kill_often(server, bucket, Path(directory), 3 if args.tiny else args.kills)
    report.publish("SIGKILL at random points", [row | {"seconds": round(time.perf_counter() - started)}], args)


if __name__ == "__main__":
    main()
