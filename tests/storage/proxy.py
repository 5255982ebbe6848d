"""A proxy before an object store that does to requests and answers what networks and servers do on bad days."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What the store answered, or what the proxy makes of it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Exchange(BaseHTTPRequestHandler):
    """A request, what the store would answer, and ways to answer something else."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def handle_request(self) -> None:
        self.sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.proxy.requests.append((self.command, self.path))
        fault = self.proxy.fault
        if fault and fault.strikes(self):
            fault.act(self)
        else:
            self.reply(self.forward())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def forward(self, body: bytes | None = None) -> Answer:
        """Hand the request to the store, with another body if given."""
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            sent = self.sent if body is None else body
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, sent, headers)
            found = upstream.getresponse()
            kept = {n.lower(): v for n, v in found.getheaders() if n.lower() not in ("transfer-encoding", "connection")}
            return Answer(found.status, found.read(), kept)
        finally:
            upstream.close()

    def reply(self, answer: Answer, *, promised: int | None = None) -> None:
        """Answer the client; ``promised`` is a length that the body does not have."""
        length = len(answer.body) if promised is None else promised
        if self.command == "HEAD":
            length = int(answer.headers.get("content-length", length))
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name != "content-length":
                self.send_header(name, value)
        self.send_header("content-length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def refuse(self, status: int, code: str, more: str = "", **headers: str) -> None:
        """Answer with an S3 error."""
        body = f"<Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>".encode()
        self.reply(Answer(status, body if self.command != "HEAD" else b"", headers))

    def drop(self) -> None:
        """Reset the connection."""
        # Sending what is left takes no time: the client sees a reset, not an end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Fault:
    """``act`` happens to the first ``times`` requests that ``when`` chooses; None is for ever."""

    name: str
    act: Callable[[Exchange], None]
    when: Callable[[str, str], bool] = lambda method, path: True
    times: int | None = 1
    struck: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, exchange: Exchange) -> bool:
        with self.lock:
            if (self.times is not None and self.struck >= self.times) or not self.when(exchange.command, exchange.path):
                return False
            self.struck += 1
            return True


@dataclass
class Proxy:
    """Sits before ``upstream`` (HOST:PORT); ``requests`` are all that came, ``fault`` what happens to them."""

    upstream: str
    url: str = ""
    fault: Fault | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Connections that end early are what this is for."""

    def shutdown_request(self, request: object) -> None:
        try:
            super().shutdown_request(request)  # type: ignore[arg-type]
        except OSError:
            return


@contextmanager
def proxy_before(url: str) -> Iterator[Proxy]:
    """A running proxy before the store at ``url``."""
    proxy = Proxy(urlsplit(url).netloc)
    server = _Server(("127.0.0.1", 0), type("Handler", (Exchange,), {"proxy": proxy}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def stall(seconds: float) -> Callable[[Exchange], None]:
    """Send half of the answer, then nothing."""

    def act(exchange: Exchange) -> None:
        answer = exchange.forward()
        half = Answer(answer.status, answer.body[: len(answer.body) // 2], answer.headers)
        exchange.reply(half, promised=len(answer.body) or 1)
        exchange.wfile.flush()
        time.sleep(seconds)
        exchange.drop()

    return act
