"""As much of S3 over HTTP as a ledger uses: list, get, put, create-only put, delete of many; no signatures."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class S3Server:
    """``objects`` by ``bucket/key``. Puts answer ``put_status`` when it is set."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.put_status: int | None = None
        self.environment: dict[str, str] = {}
        self.lock = threading.Lock()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server; ``environment`` is what a client needs."""
    state = S3Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _key(self) -> str:
            return unquote(urlsplit(self.path).path).lstrip("/")

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                self._reply(200, _listing(state, self._key(), query.get("prefix", [""])[0]))
            elif self._key() in state.objects:
                body = state.objects[self._key()]
                etag = f'"{hashlib.md5(body).hexdigest()}"'
                self._reply(200, body, etag=etag, last_modified="Mon, 01 Jan 2024 00:00:00 GMT")
            else:
                self._reply(404)

        def do_PUT(self) -> None:
            body = self._body()
            with state.lock:
                if state.put_status:
                    self._reply(state.put_status)
                elif self.headers.get("if-none-match") == "*" and self._key() in state.objects:
                    self._reply(412)
                else:
                    state.objects[self._key()] = body
                    self._reply(200, etag=f'"{hashlib.md5(body).hexdigest()}"')

        def do_POST(self) -> None:
            bucket, deleted = self._key().rstrip("/"), ""
            for key in re.findall(r"<Key>(.*?)</Key>", self._body().decode()):
                state.objects.pop(f"{bucket}/{key}", None)
                deleted += f"<Deleted><Key>{key}</Key></Deleted>"
            self._reply(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that is killed is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _listing(state: S3Server, bucket: str, prefix: str) -> bytes:
    bucket = bucket.rstrip("/")
    with state.lock:
        found = {key.removeprefix(f"{bucket}/"): body for key, body in sorted(state.objects.items())}
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{hashlib.md5(body).hexdigest()}&quot;</ETag><Size>{len(body)}</Size></Contents>"
        for key, body in found.items()
        if key.startswith(prefix)
    )
    return (
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ).encode()
