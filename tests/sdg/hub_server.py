"""As much of the Hugging Face hub over HTTP as reading a data set takes: the tree of a commit, and its files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer:
    """``files`` of the data set ``team/docs`` at ``commit``; ``fetched`` are those that were asked for, in order."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.authorizations: set[str | None] = set()
        self.status: int | None = None  # answered to everything when set
        self.torn: set[str] = set()  # files of which half comes, once
        self.url = ""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server; its address belongs into HF_ENDPOINT."""
    state = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            state.authorizations.add(self.headers["authorization"])
            path = unquote(urlsplit(self.path).path)
            tree, resolve = (
                f"/api/datasets/team/docs/tree/{state.commit}",
                f"/datasets/team/docs/resolve/{state.commit}/",
            )
            if state.status:
                self._reply(state.status, b"{}")
            elif path.startswith(tree):
                self._tree(path.removeprefix(tree).strip("/"))
            elif path.startswith(resolve) and (name := path.removeprefix(resolve)) in state.files:
                self._file(name)
            else:
                code = "RevisionNotFound" if "/team/docs/" in path else "RepoNotFound"
                self._reply(404, b'{"error": "not found"}', x_error_code=code)

        do_HEAD = do_GET

        def _tree(self, folder: str) -> None:
            names = [name for name in state.files if not folder or name.startswith(f"{folder}/")]
            if not names:
                self._reply(404, b'{"error": "not found"}', x_error_code="EntryNotFound")
                return
            entries = [
                {"type": "file", "path": name, "size": len(state.files[name]), "oid": _oid(state.files[name])}
                for name in names
            ]
            self._reply(200, json.dumps(entries).encode(), content_type="application/json")

        def _file(self, name: str) -> None:
            body = state.files[name]
            if self.command == "GET":
                state.fetched.append(name)
                start = int((self.headers["range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
                if name in state.torn:
                    state.torn.remove(name)
                    self.send_response(200)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2])
                    self.close_connection = True
                    return
                if start:
                    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                    self._reply(206, body[start:], content_range=span, etag=f'"{_oid(body)}"')
                    return
            self._reply(200, body, etag=f'"{_oid(body)}"', x_repo_commit=state.commit)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
