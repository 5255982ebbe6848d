"""An OpenAI-compatible LLM of its own process that answers after a fixed time and fails on demand.

``python -m benchmarks.generation_server --delay 0.2 --faults 0.3`` prints its URL and serves until its standard input
closes; ``GET /counts`` tells how often it was asked, answered and failed. Answers are those of the tests' scripted
server, so that a run through it makes a data set that prep reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.request import urlopen

from tests.sdg.llm_server import LlmServer

KINDS = ("429", "500", "503", "reset", "torn answer", "login page", "answer lost")
_KINDS_OF_REQUEST = (b'"input":', b"pair_id", b"Segment 1:")
_HEADS = {"429": "429 Too Many Requests", "500": "500 Internal Server Error", "503": "503 Service Unavailable"}


@dataclass
class _Server:
    delay: float
    faults: float
    constant: bool
    script: LlmServer = field(default_factory=LlmServer)
    counts: Counter[str] = field(default_factory=Counter)
    tries: Counter[bytes] = field(default_factory=Counter)
    answers: dict[bytes, bytes] = field(default_factory=dict)
    first: float = 0.0  # request
    last: float = 0.0  # answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        if path == "/counts":
            span = {"milliseconds": round(1000 * (self.last - self.first))}
            writer.write(_response("200 OK", json.dumps({**self.counts, **span}).encode()))
            await writer.drain()
            return True
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        self.counts["requests"] += 1
        self.first = self.first or time.perf_counter()
        self.counts["in flight"] += 1
        self.counts["most in flight"] = max(self.counts["most in flight"], self.counts["in flight"])
        # What the server itself takes is part of the delay.
        due = asyncio.get_running_loop().time() + self.delay
        fault, answer = self._fault(body), self._answer(path, body)
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        self.counts["in flight"] -= 1
        if fault is not None:
            self.counts[fault] += 1
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault in _HEADS:
            writer.write(_response(_HEADS[fault], b"{}"))
        elif fault == "login page":
            writer.write(_response("200 OK", b"<html>Sign in</html>"))
        else:
            if fault is not None:  # the work is done, and the answer does not arrive
                if fault == "torn answer":
                    writer.write(_response("200 OK", answer)[:-20])
                    await writer.drain()
                writer.transport.abort() if fault == "answer lost" else writer.close()
                return False
            self.counts["answers"] += 1
            self.last = time.perf_counter()
            writer.write(_response("200 OK", answer))
        await writer.drain()
        return True

    def _fault(self, body: bytes) -> str | None:
        """The same for the same try of the same request, whatever the order in which they come."""
        if not self.faults:
            return None
        key = hashlib.sha256(body).digest()
        self.tries[key] += 1
        random_ = random.Random(key + bytes([self.tries[key] % 256]))
        return random_.choice(KINDS) if random_.random() < self.faults else None

    def _answer(self, path: str, body: bytes) -> bytes:
        # Making up an answer for each would take longer than the client takes to ask: one for each kind of request.
        kind = next((word for word in _KINDS_OF_REQUEST if word in body), b"") if self.constant else None
        if kind in self.answers:
            return self.answers[kind]
        answer = self.script.usual(self.counts["answers"], path, json.loads(body))[2].encode()
        if kind is not None:
            self.answers[kind] = answer
        return answer


def _response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def server(*, delay: float, faults: float = 0.0, constant: bool = False, core: int | None = None) -> Iterator[str]:
    """The URL of a running server, on ``core`` when given; it is gone afterwards."""
    command = [sys.executable, "-m", "benchmarks.generation_server", "--delay", str(delay), "--faults", str(faults)]
    command += ["--constant"] if constant else []
    command += ["--core", str(core)] if core is not None else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def counts(url: str) -> dict[str, int]:
    """What the server at ``url`` counted."""
    with urlopen(url.removesuffix("/v1") + "/counts") as answer:
        return json.load(answer)


async def _main(args: argparse.Namespace) -> None:
    state = _Server(args.delay, args.faults, args.constant)
    listening = await asyncio.start_server(state.serve, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An LLM that answers by script.")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds that an answer takes (default: 0.2)")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail (default: 0)")
    parser.add_argument("--constant", action="store_true", help="one answer for each kind of request")
    parser.add_argument("--core", type=int, help="run on this core only")
    found = parser.parse_args()
    if found.core is not None:
        os.sched_setaffinity(0, {found.core})
    asyncio.run(_main(found))
