"""Our server beside a naive one: ``python -m benchmarks.serving [--tiny] [--json FILE] [--only WORD]``.

all-MiniLM-L6-v2 is exported and served on a CPU; the load is questions and passages out of Python's documentation.
Each contestant is a process of its own with the same threads; loads go to them in turn, so that a machine's busy
minutes meet all of them. On a busy machine the CPU seconds of the server say most.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import httpx
import numpy as np

from benchmarks import report
from components.command_line.cli import parse
from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.recipe.plan import resolve_settings
from components.recipe.stages import by_name

_THREADS = 2
_ROUNDS = 3
_NAME = "minilm"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """``clients`` send ``requests`` a round, of ``texts`` texts each, of ``words`` words."""

    name: str
    clients: int
    requests: int
    texts: int
    words: int


@dataclass(frozen=True)
class _Server:
    """A contestant that runs."""

    name: str
    url: str
    pid: int


LOADS = (
    Load("1 client, 1 question", 1, 20, 1, 10),
    Load("16 clients, 1 question", 16, 96, 1, 10),
    Load("4 clients, 32 passages", 4, 4, 32, 80),
)


def main() -> None:
    args = report.arguments("Requests per second and CPU seconds of embedding servers.")
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        work = Path(directory)
        commands = {
            "sentence-transformers behind FastAPI": _peer(_checkpoint(work)),
            "ours": _ours(_export(work)),
        }
        servers = [stack.enter_context(_serving(name, commands[name])) for name in report.chosen(commands, args.only)]
        vectors = [asyncio.run(_vectors(server.url)) for server in servers]
        agreement = min(float((found * vectors[0]).sum(1).min()) for found in vectors)
        rows = [row for load in LOADS for row in _compare(servers, load, tiny=args.tiny)]
    report.publish(f"Serving all-MiniLM-L6-v2, {_THREADS} threads, least cosine {agreement:.4f}", rows, args)


def _checkpoint(work: Path) -> Path:
    config = resolve_settings([by_name("prep")], profile_name="small", values={})["prep"].encoder()
    save_checkpoint(load_base(config), work / "checkpoint")
    return work / "checkpoint"


def _export(work: Path) -> Path:
    parse(["export", "--checkpoint", str(work / "checkpoint"), "--work", str(work), "num_probes=16"]).run()
    return work / "exported_model"


def _peer(checkpoint: Path) -> list[str]:
    return ["benchmarks.serving_peer", "--model", str(checkpoint), "--threads", str(_THREADS)]


def _ours(model: Path) -> list[str]:
    return ["components.server", "--model", str(model), "--name", _NAME, "--threads", str(_THREADS)]


@contextlib.contextmanager
def _serving(name: str, command: list[str]) -> Iterator[_Server]:
    """A contestant that answers, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(_THREADS)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    )
    server = _Server(name, f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait(server.url, process)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


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


def _compare(servers: list[_Server], load: Load, *, tiny: bool) -> list[dict[str, Any]]:
    """A row for each server, from requests sent to them in turn."""
    requests = load.clients if tiny else load.requests
    taken: dict[str, list[float]] = {server.name: [] for server in servers}
    seconds, cpu = dict.fromkeys(taken, 0.0), dict.fromkeys(taken, 0.0)
    for server in servers:
        asyncio.run(_send(server.url, load, load.clients))
    for _ in range(_ROUNDS):
        for server in servers:
            before, started = _cpu_seconds(server.pid), time.perf_counter()
            taken[server.name] += asyncio.run(_send(server.url, load, requests))
            seconds[server.name] += time.perf_counter() - started
            cpu[server.name] += _cpu_seconds(server.pid) - before
    texts = _ROUNDS * requests * load.texts
    rows = [
        {
            "contestant": name,
            "load": load.name,
            "texts/s": round(texts / seconds[name], 1),
            "median ms": round(1000 * statistics.median(times), 1),
            "95th percentile ms": round(1000 * float(np.percentile(times, 95)), 1),
            "CPU s per 1,000 texts": round(1000 * cpu[name] / texts, 2),
        }
        for name, times in taken.items()
    ]
    for row in rows:
        print(row, flush=True)
    return rows


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
