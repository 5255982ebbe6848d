"""What the LLM client itself costs: ``python -m benchmarks.generation_client``.

A server in another process, on another core, takes 200 ms for every answer. With 64 requests in flight nobody can get
more than 320 answers a second; how many does a whole run of sdg get on one core, reading, checking, and keeping every
answer on disk included? And does it get each of 1,000 answers once when all are asked for at the same time and 30 % of
the requests fail in seven ways? On a machine that others use, ``chrt -f 1`` before the command keeps them off it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import report
from benchmarks.generation_server import KINDS, counts, server
from components.core import log
from components.sdg.component import SdgConfig
from components.sdg.llm import client as endpoint
from components.sdg.llm.budget import Budget
from components.sdg.llm.ledger import open_ledger
from components.sdg.llm.prompts import DocumentArtifacts, ask_for_artifacts
from components.sdg.llm.roles import AnswerCounts, LlmRoles
from components.sdg.program import run

DELAY, IN_FLIGHT = 0.2, 64
# Not a core's first thread alone: the server must not share the client's core.
CLIENT_CORE, SERVER_CORE = 0, 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests per second of sdg's LLM client.")
    parser.add_argument("--documents", type=int, default=3000, help="documents of the run (default: 3000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts (default: 3)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="a Python with data-designer, to compare with")
    parser.add_argument("--tiny", action="store_true", help="few documents, to see that everything runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    os.environ["NVIDIA_API_KEY"] = "none"
    os.sched_setaffinity(0, {CLIENT_CORE})
    log.configure("benchmark")
    documents = 100 if args.tiny else args.documents
    rows = []
    contestants = [throughput, bare_loop] + ([partial(peer, args.peer)] if args.peer else [])
    for contestant in contestants:
        runs = [contestant(documents) for _ in range(1 if args.tiny else args.repeats)]
        middle = sorted(runs, key=lambda row: row["requests/s"])[len(runs) // 2]
        rows.append(middle | {"all runs": ", ".join(row["of the ideal"] for row in runs)})
    report.publish(f"{IN_FLIGHT} in flight, answers after {DELAY * 1000:.0f} ms, client on one core", rows, args)
    args.json = args.json and args.json.with_stem(args.json.stem + "_faults")
    report.publish("1,000 requests at once, 30 % fail", [concurrent(100 if args.tiny else 1000)], args)


def throughput(documents: int) -> dict[str, Any]:
    """A run of sdg over ``documents`` documents."""
    with server(delay=DELAY, constant=True, core=SERVER_CORE) as url, tempfile.TemporaryDirectory() as directory:
        corpus = write_corpus(Path(directory) / "corpus", documents)
        config = SdgConfig(
            llm_base_url=url,
            max_parallel_requests_for_gen=IN_FLIGHT,
            ledger_uri=str(Path(directory) / "ledger"),
        )
        used = time.process_time()
        outputs = {name: Path(directory) / name for name in ("qa_pairs", "generation_report", "past_runs")}
        metrics = run(config, corpus=corpus, **outputs)
        used = time.process_time() - used
        found = counts(url)
    if metrics["paid_answers"] != found["requests"]:
        raise SystemExit(f"{metrics['paid_answers']} answers of {found['requests']} requests")
    return _row("sdg, whole run", found, used)


def bare_loop(documents: int) -> dict[str, Any]:
    """The HTTP library alone: nothing read, checked or kept. What this machine allows."""
    with server(delay=DELAY, constant=True, core=SERVER_CORE) as url:
        used = time.process_time()
        asyncio.run(_post_only(url, 3 * documents))
        return _row("aiohttp alone, for comparison", counts(url), time.process_time() - used)


def peer(python: Path, documents: int) -> dict[str, Any]:
    """Data Designer, one question for each document; its answers are not kept as they come."""
    with server(delay=DELAY, constant=True, core=SERVER_CORE) as url:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        script = Path(__file__).with_name("generation_peer.py")
        subprocess.run([python, script, url, str(documents)], check=True, stderr=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return _row("data-designer", counts(url), used)


async def _post_only(url: str, requests: int) -> None:
    body = {"model": "m", "messages": ask_for_artifacts("A text about a machine. " * 20, SdgConfig())}
    numbers = iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for _ in numbers:
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    await answer.read()

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


def _row(contestant: str, found: dict[str, int], used: float) -> dict[str, Any]:
    """``found`` by the server; ``used`` seconds of CPU, reading and writing files included."""
    rate = found["requests"] / (found["milliseconds"] / 1000)
    return {
        "contestant": contestant,
        "requests": found["requests"],
        "most in flight": found["most in flight"],
        "requests/s": round(rate, 1),
        "of the ideal": f"{rate / (IN_FLIGHT / DELAY):.1%}",
        "CPU ms/request": round(1000 * used / found["requests"], 2),
    }


def concurrent(requests: int) -> dict[str, Any]:
    """``requests`` different requests at once through faults of seven kinds; raises when an answer is not its own."""
    endpoint._LONGEST_BACK_OFF_SECONDS = 2.0
    with server(delay=DELAY, faults=0.3) as url, tempfile.TemporaryDirectory() as directory:
        config = SdgConfig(
            llm_base_url=url, max_parallel_requests_for_gen=requests, ledger_uri=directory, max_attempts=20
        )
        started = time.perf_counter()
        asked = asyncio.run(_ask_all(config, requests))
        seconds = time.perf_counter() - started
        found = counts(url)
        kept = len(open_ledger(directory))
    faults = {kind: found.get(kind, 0) for kind in KINDS}
    if not asked.answers == asked.paid == kept == found["answers"] == requests:
        raise SystemExit(f"{requests} sent: {asked}, {kept} kept, {found}")
    return {
        "asked": requests,
        "answers": asked.answers,
        "kept": kept,
        "requests": found["requests"],
        "most in flight": found["most in flight"],
        "seconds": round(seconds, 1),
        "faults": ", ".join(f"{count} {name}" for name, count in sorted(faults.items())),
    }


async def _ask_all(config: SdgConfig, requests: int) -> AnswerCounts:
    counts = AnswerCounts()
    async with LlmRoles(config, open_ledger(config.ledger_uri), Budget(config, config.models.values())) as llm:
        texts = [f"Document {number} is about machine{number}." for number in range(requests)]
        asked = (llm.ask("artifact_extraction", ask_for_artifacts(t, config), DocumentArtifacts, counts) for t in texts)
        await asyncio.gather(*asked)
    return counts


def write_corpus(directory: Path, documents: int) -> Path:
    """Documents of 12 sentences, no two alike."""
    directory.mkdir()
    for number in range(documents):
        text = " ".join(f"Sentence {part} of text {number} is about machine{number}x{part}." for part in range(12))
        (directory / f"{number:06}.txt").write_text(text, encoding="utf-8")
    return directory


if __name__ == "__main__":
    main()
