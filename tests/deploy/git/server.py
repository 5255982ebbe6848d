"""A Git host over real HTTPS, with a certificate of its own; ``fault`` may answer a request instead of the API."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.deploy.certificate import write_self_signed
from tests.deploy.git.github import GitHubApi
from tests.deploy.git.gitlab import GitLabApi
from tests.deploy.git.repository import Repository

TOKEN = "ghp_canaryCanary0123456789"
Fault = Callable[[str, str], tuple[int, Any, dict[str, str]] | None]


class GitServer:
    """``requests`` are method and path of each one."""

    def __init__(self, api: type[GitHubApi] | type[GitLabApi]) -> None:
        self.repository = Repository()
        self.api = api(self.repository)
        self.fault: Fault = lambda *_: None
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    @property
    def address(self) -> str:
        """What a person gives as git_repository."""
        return f"{self.url}/{self.repository.path}.git"

    def writes(self) -> list[str]:
        return [path for method, path in self.requests if method != "GET"]

    def answer(self, method: str, url: str, headers: Any, body: Any) -> tuple[int, Any, dict[str, str]]:
        parts = urlsplit(url)
        self.requests.append((method, parts.path))
        if fault := self.fault(method, parts.path):
            return fault
        if headers.get(self.api.header) != self.api.authorization.format(TOKEN):
            return (*self.api.unauthorised(), {})
        return self.api.answer(method, parts.path, dict(parse_qsl(parts.query)), body)


@contextmanager
def running(server: GitServer, directory: Path) -> Iterator[Path]:
    """``server`` at its ``url``; the file is the authority that its certificate is from."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content, headers = server.answer(
                self.command, self.path, self.headers, json.loads(text) if text else None
            )
            sent = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(sent))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    certificate, key = directory / "git.pem", directory / "git.key"
    write_self_signed(certificate, key, "git")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"https://127.0.0.1:{http.server_port}"
    try:
        yield certificate
    finally:
        http.shutdown()
        http.server_close()
