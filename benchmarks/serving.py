"""Our server beside a naive one: ``python -m benchmarks.serving [--tiny] [--json FILE] [--only WORD]``.

all-MiniLM-L6-v2 is exported and served on a CPU; the load is questions and passages out of Python's documentation.
Each contestant runs alone, in its own process, with the same threads. On a busy machine only the CPU seconds of the
server say anything.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import httpx
import numpy as np

from benchmarks import report
from components.cli import parse
from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.plan import resolve
from components.stages import by_name

_THREADS = 2
_NAME = "minilm"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """``clients`` send ``requests`` of ``texts`` texts each, of ``words`` words."""

    name: str
    clients: int
    requests: int
    texts: int
    words: int


LOADS = (
    Load("1 client, 1 question", 1, 100, 1, 10),
    Load("16 clients, 1 question", 16, 400, 1, 10),
    Load("4 clients, 32 passages", 4, 12, 32, 80),
)


def main() -> None:
    args = report.arguments("Requests per second and CPU seconds of embedding servers.")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        contestants = {
            "sentence-transformers behind FastAPI": _peer(_checkpoint(work)),
            "ours": _ours(_export(work)),
        }
        rows = []
        expected: np.ndarray | None = None
        for name, command in contestants.items():
            if args.only in name:
                found, expected = _measure(name, command, expected, tiny=args.tiny)
                rows += found
    report.publish(f"Serving all-MiniLM-L6-v2, {_THREADS} threads", rows, args)


def _checkpoint(work: Path) -> Path:
    config = resolve([by_name("prep")], profile_name="small", given={})["prep"].encoder()
    save_checkpoint(load_base(config), work / "checkpoint")
    return work / "checkpoint"


def _export(work: Path) -> Path:
    parse(["export", "--checkpoint", str(work / "checkpoint"), "--work", str(work), "num_probes=16"]).run()
    return work / "exported_model"


def _peer(checkpoint: Path) -> list[str]:
    return ["benchmarks.serving_peer", "--model", str(checkpoint), "--threads", str(_THREADS)]


def _ours(model: Path) -> list[str]:
    return ["components.server", "--model", str(model), "--name", _NAME, "--threads", str(_THREADS)]


def _measure(
    name: str, command: list[str], expected: np.ndarray | None, *, tiny: bool
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """A row for each load, and the vectors of some texts: all contestants must agree on them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(_THREADS)}
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, server)
        vectors = asyncio.run(_vectors(url))
        agreement = 1.0 if expected is None else float((vectors * expected).sum(1).min())
        rows = [_row(name, url, server.pid, load, agreement, tiny=tiny) for load in LOADS]
    finally:
        server.terminate()
        server.wait(timeout=60)
    return rows, vectors if expected is None else expected


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with code {server.returncode}")
        try:
            if httpx.get(f"{url}/v1/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not start within two minutes")


def _row(name: str, url: str, pid: int, load: Load, agreement: float, *, tiny: bool) -> dict[str, Any]:
    requests = max(load.requests // 20, load.clients) if tiny else load.requests
    asyncio.run(_send(url, load, load.clients))
    cpu, started = _cpu_seconds(pid), time.perf_counter()
    taken = asyncio.run(_send(url, load, requests))
    seconds = time.perf_counter() - started
    texts = requests * load.texts
    row = {
        "contestant": name,
        "load": load.name,
        "texts/s": round(texts / seconds, 1),
        "median ms": round(1000 * statistics.median(taken), 1),
        "95th percentile ms": round(1000 * float(np.percentile(taken, 95)), 1),
        "CPU s per 1,000 texts": round(1000 * (_cpu_seconds(pid) - cpu) / texts, 2),
        "least cosine to the first": round(agreement, 4),
    }
    print(row, flush=True)
    return row


async def _send(url: str, load: Load, requests: int) -> list[float]:
    """Seconds of each request; every client sends the next one when the last is answered."""
    texts = _texts(load)
    numbers = iter(range(requests))
    taken: list[float] = []

    async def client() -> None:
        async with httpx.AsyncClient(timeout=300) as session:
            for number in numbers:
                start = number * load.texts
                batch = [texts[(start + place) % len(texts)] for place in range(load.texts)]
                begun = time.perf_counter()
                (await session.post(f"{url}/v1/embeddings", json=_body(batch))).raise_for_status()
                taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return taken


async def _vectors(url: str) -> np.ndarray:
    async with httpx.AsyncClient(timeout=300) as session:
        answer = await session.post(f"{url}/v1/embeddings", json=_body(_texts(LOADS[2])[:16]))
    return np.array([row["embedding"] for row in answer.raise_for_status().json()["data"]])


def _body(texts: list[str]) -> dict[str, Any]:
    return {"model": _NAME, "input": texts, "input_type": "passage", "truncate": "END"}


def _texts(load: Load) -> list[str]:
    """Runs of words of the documentation; their number varies by half around ``words``."""
    words = " ".join(topics[name] for name in sorted(topics)).split()
    found, start = [], 0
    while start < 40_000:
        count = load.words // 2 + (start * 7919) % (load.words + 1)
        found.append(" ".join(words[start : start + count]))
        start += count
    return found


def _cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    main()
