"""Kills a run again and again, with a new disk each time, and looks whether an answer was paid for twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.sdg.llm_server import LlmServer
from tests.storage.s3_server import S3Server


def write_corpus(directory: Path, count: int) -> Path:
    directory.mkdir(parents=True)
    for number in range(count):
        text = " ".join(f"Sentence {part} of document {number} is about machine{number}x{part}." for part in range(12))
        (directory / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return directory


def arguments(server: LlmServer, work: Path, corpus: Path, *more: str) -> list[str]:
    settings = [f"llm_base_url={server.url}", "max_parallel_requests_for_gen=4", *more]
    return [sys.executable, "-m", "components", "sdg", "--work", str(work), "--corpus", str(corpus), *settings]


def run(server: LlmServer, work: Path, corpus: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(server, work, corpus, *more), capture_output=True, text=True, check=False)


def made(work: Path) -> dict[str, bytes]:
    names = ("qa_pairs.jsonl", "generation_result.json")
    return {name: (work / "qa_pairs" / name).read_bytes() for name in names}


def fingerprints(bucket: S3Server) -> set[str]:
    """Of the chat answers that are in the bucket now: the server gives each its own."""
    with bucket.lock:
        segments = list(bucket.objects.values())
    entries = [json.loads(line) for segment in segments for line in segment.splitlines()]
    return {entry["answer"]["fingerprint"] for entry in entries if "fingerprint" in entry.get("answer", {})}


def kill_often(server: LlmServer, bucket: S3Server, directory: Path, kills: int) -> dict[str, Any]:
    """Kill ``kills`` runs over one ledger in ``bucket`` at random points, let the last one end, and check.

    Each run starts in a directory of its own: only the bucket stays. Raises AssertionError when an answer that was in
    the bucket is asked for again, or the data set differs from that of a run that nobody killed.
    """
    corpus = write_corpus(directory / "corpus", 4 * kills)
    whole = run(server, directory / "whole", corpus, "ledger_uri=s3://bucket/whole")
    assert whole.returncode == 0, whole.stderr
    bucket.objects.clear()
    server.requests.clear()

    server.delay = 0.03  # slow enough to be killed in the middle
    random_ = random.Random(kills)
    acknowledged: list[tuple[int, set[str]]] = []
    for number in range(kills):
        seen = len(server.requests)
        process = subprocess.Popen(
            arguments(server, directory / f"work{number}", corpus, "ledger_uri=s3://bucket/killed"),
            stderr=subprocess.DEVNULL,
        )
        wanted = seen + random_.randint(1, 12)
        while len(server.requests) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random_.uniform(0, 0.05))
        process.kill()
        process.wait()
        time.sleep(0.1)  # requests that were under way
        acknowledged.append((len(server.requests), fingerprints(bucket)))
    last = run(server, directory / "last", corpus, "ledger_uri=s3://bucket/killed")
    assert last.returncode == 0, last.stderr

    assert made(directory / "last") == made(directory / "whole")
    bodies = [json.dumps(body, sort_keys=True) for _, body in server.requests]
    for position, known in acknowledged:
        paid = {bodies[int(fingerprint) - 1] for fingerprint in known}
        assert not paid & set(bodies[position:])
    assert acknowledged[-1][1]  # something was kept, so something could have been paid for twice
    twice = len(bodies) - len(set(bodies))
    assert twice <= 8 * kills  # those under way when the process died
    return {
        "kills": kills,
        "requests": len(bodies),
        "answers kept before the last run": len(acknowledged[-1][1]),
        "kept answers paid again": 0,
        "requests under way at a kill, asked again": twice,
        "same bytes as unkilled": True,
    }
