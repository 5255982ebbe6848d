"""As much of S3 over HTTP as publishing a release uses: get, head, put, uploads in parts; no signatures."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit


class Bucket:
    """``objects`` by ``bucket/key``, ``parts`` of uploads under way. Writes answer ``refuse`` when it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refuse: int | None = None
        self.environment: dict[str, str] = {}


@contextmanager
def bucket_server() -> Iterator[Bucket]:
    """A running server; ``environment`` is what a client needs."""
    state = Bucket()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = unquote(urlsplit(self.path).path).lstrip("/")
            query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            upload = query.get("uploadId", "")
            if self.command in ("GET", "HEAD"):
                found = state.objects.get(key)
                self.answer(404 if found is None else 200, found or b"")
            elif state.refuse:
                self.answer(state.refuse)
            elif self.command == "PUT" and upload:
                state.parts[upload][int(query["partNumber"])] = sent
                self.answer(200)
            elif self.command == "PUT":
                state.objects[key] = sent
                self.answer(200)
            elif "uploads" in query:
                upload = f"upload-{len(state.parts)}"
                state.parts[upload] = {}
                self.answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode())
            elif self.command == "POST":
                state.objects[key] = b"".join(part for _, part in sorted(state.parts.pop(upload).items()))
                self.answer(200, b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')
            else:
                state.parts.pop(upload, None)
                self.answer(204)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
