"""An object store over HTTP, in memory: as much of S3, and of Cloud Storage's XML API, as this project uses.

Listing in pages, get and head with ranges and metadata, put, create-only put, uploads in parts, delete of one and of
many. Bodies are checked against the hash that their request is signed with; signatures are not.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

_META = ("x-amz-meta-", "x-goog-meta-")
_PAGE = 1000


class S3Server:
    """``objects`` by ``bucket/key``, ``parts`` of uploads under way.

    Writes answer ``put_status`` when it is set, reads and lists ``refusal``.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.put_status: int | None = None
        self.refusal: tuple[int, str] | None = None  # status and code
        self.url = ""
        self.environment: dict[str, str] = {}
        self.lock = threading.Lock()

    def listing(self, bucket: str, query: dict[str, str]) -> bytes:
        """One page of the keys of ``bucket``."""
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        with self.lock:
            found = {key.removeprefix(f"{bucket}/"): body for key, body in sorted(self.objects.items())}
        names = [name for name in found if name.startswith(prefix) and name > after]
        size = int(query.get("max-keys", _PAGE))
        page, more = names[:size], len(names) > size
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{_md5(found[name])}&quot;</ETag><Size>{len(found[name])}</Size></Contents>"
            for name in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{size}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
        ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: S3Server

    def handle_request(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        key, query = unquote(parts.path).lstrip("/"), dict(parse_qsl(parts.query, keep_blank_values=True))
        signed = self.headers.get("x-amz-content-sha256", "")
        if re.fullmatch("[0-9a-f]{64}", signed) and hashlib.sha256(sent).hexdigest() != signed:
            self._error(400, "XAmzContentSHA256Mismatch")
        elif self.command in ("GET", "HEAD") and self.state.refusal:
            self._error(*self.state.refusal)
        elif self.command in ("GET", "HEAD"):
            self._listed(key, query) if "list-type" in query else self._get(key)
        elif self.state.put_status:
            self._error(self.state.put_status, "AccessDenied" if self.state.put_status == 403 else "InternalError")
        elif "uploadId" in query or "uploads" in query:
            self._upload(key, query, sent)
        elif self.command == "PUT":
            self._put(key, sent)
        elif self.command == "POST":
            self._delete_many(key.rstrip("/"), sent)
        else:
            with self.state.lock:
                self.state.objects.pop(key, None)
            self._reply(204)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def _listed(self, bucket: str, query: dict[str, str]) -> None:
        self._reply(200, self.state.listing(bucket.rstrip("/"), query))

    def _get(self, key: str) -> None:
        with self.state.lock:
            body, kept = self.state.objects.get(key), self.state.metadata.get(key, {})
        if body is None:
            self._error(404, "NoSuchKey")
            return
        headers = {"etag": f'"{_md5(body)}"', "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT", **kept}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if not span:
            self._reply(200, body, **headers)
            return
        start, end = int(span[1]), min(int(span[2] or len(body)) + 1, len(body))
        self._reply(206, body[start:end], **headers, **{"content-range": f"bytes {start}-{end - 1}/{len(body)}"})

    def _put(self, key: str, body: bytes) -> None:
        only_new = self.headers.get("if-none-match") == "*" or self.headers.get("x-goog-if-generation-match") == "0"
        with self.state.lock:
            if only_new and key in self.state.objects:
                self._error(412, "PreconditionFailed")
                return
            self._keep(key, body, self._metadata())
        self._reply(200, etag=f'"{_md5(body)}"', **{"x-goog-generation": "1"})

    def _upload(self, key: str, query: dict[str, str], sent: bytes) -> None:
        upload = query.get("uploadId", "")
        with self.state.lock:
            if "uploads" in query:
                upload = f"upload-{len(self.state.parts)}-{key}"
                self.state.parts[upload] = {}
                self.state.metadata[upload] = self._metadata()
                body = f"<R><Bucket>b</Bucket><Key>k</Key><UploadId>{escape(upload)}</UploadId></R>"
                self._reply(200, body.encode())
            elif self.command == "PUT":
                self.state.parts[upload][int(query["partNumber"])] = sent
                self._reply(200, etag=f'"{_md5(sent)}"')
            elif self.command == "POST" and upload not in self.state.parts:
                self._error(404, "NoSuchUpload")
            elif self.command == "POST":
                whole = b"".join(part for _, part in sorted(self.state.parts.pop(upload).items()))
                self._keep(key, whole, self.state.metadata.pop(upload, {}))
                body = '<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>'
                self._reply(200, body.encode())
            else:
                self.state.parts.pop(upload, None)
                self._reply(204)

    def _delete_many(self, bucket: str, sent: bytes) -> None:
        deleted = ""
        with self.state.lock:
            for key in re.findall(r"<Key>(.*?)</Key>", sent.decode()):
                self.state.objects.pop(f"{bucket}/{unescape(key)}", None)
                deleted += f"<Deleted><Key>{key}</Key></Deleted>"
        self._reply(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())

    def _keep(self, key: str, body: bytes, metadata: dict[str, str]) -> None:
        self.state.objects.pop(key, None)  # the order of ``objects`` is that of their last writes
        self.state.objects[key], self.state.metadata[key] = body, metadata

    def _metadata(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items() if name.lower().startswith(_META)}

    def _error(self, status: int, code: str) -> None:
        self._reply(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is killed is part of the tests."""


@contextmanager
def s3_server(port: int = 0) -> Iterator[S3Server]:
    """A running server; ``environment`` is what a client needs."""
    state = S3Server()
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"state": state}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    state.environment = {
        "AWS_ENDPOINT_URL": state.url,
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


def _md5(body: bytes) -> str:
    return hashlib.md5(body).hexdigest()
