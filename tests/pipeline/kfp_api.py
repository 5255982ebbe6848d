"""A stand-in of KFP's REST API over HTTP; bodies are read and answered through the models of ``kfp_server_api``."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

_ROOT = "/apis/v2beta1"
_CLIENT = api.ApiClient()
Answer = tuple[int, Any]


@dataclass
class KfpApi:
    """What the server holds. ``intercept`` may answer a request in the server's place: None leaves it to the server."""

    url: str = ""
    pipelines: list[Any] = field(default_factory=list)
    versions: list[Any] = field(default_factory=list)
    experiments: list[Any] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    recurring: list[Any] = field(default_factory=list)
    uploaded: list[bytes] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    # What a run looks like each time it is asked for; the last one stays.
    course: list[tuple[str, dict[str, str]]] = field(default_factory=lambda: [("SUCCEEDED", {})])
    began: str = "2026-01-01T10:00:00Z"
    ended: str = "2026-01-01T12:00:00Z"
    intercept: Callable[[str, str], Answer | bytes | None] = lambda method, path: None
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Message) -> Answer:
        resource, _, rest = path.removeprefix(f"{_ROOT}/").partition("/")
        wanted = _named(query.get("filter"))
        if (method, path) == ("GET", f"{_ROOT}/healthz"):
            return 200, {"multi_user": False}
        if (method, resource, rest) == ("POST", "pipelines", "upload_version"):
            content = _file_of(body, headers)
            return self._add(self.versions, "pipeline_version_id", _CLIENT_MODEL["versions"], {
                "pipeline_id": query["pipelineid"], "display_name": query["name"],
                "description": query.get("description"),
            }, lambda version: self.uploaded.append(content), same=("pipeline_id", "display_name"))  # fmt: skip
        if method == "GET" and rest.endswith("/versions"):
            found = [v for v in self.versions if v.pipeline_id == rest.split("/")[0] and v.display_name == wanted]
            return 200, {"pipeline_versions": found}
        if resource == "runs" and method == "GET":
            return self._run(rest)
        kinds = {"pipelines": self.pipelines, "experiments": self.experiments, "runs": self.runs,
                 "recurringruns": self.recurring}  # fmt: skip
        held, id_name, model = kinds[resource], _ID[resource], _CLIENT_MODEL[resource]
        if method == "GET":
            found = [one for one in held if wanted in (None, one.display_name)]
            return 200, {_LIST[resource]: found}
        if method == "DELETE":
            held[:] = [one for one in held if getattr(one, id_name) != rest]
            return 200, {}
        if rest.endswith((":enable", ":disable")):
            (one,) = [one for one in held if getattr(one, id_name) == rest.rpartition(":")[0]]
            one.mode = rest.rpartition(":")[2].upper()
            return 200, {}
        same = ("display_name",) if resource in ("pipelines", "experiments") else ()
        return self._add(held, id_name, model, json.loads(body), same=same)

    def _add(
        self,
        held: list[Any],
        id_name: str,
        model: str,
        body: dict[str, Any],
        then: Callable[[Any], None] = lambda made: None,
        *,
        same: tuple[str, ...] = (),
    ) -> Answer:
        made = read(model, body)
        if same and any(all(getattr(one, name) == getattr(made, name) for name in same) for one in held):
            return 409, {"error": "Already exist error", "code": 6, "message": "the name is taken"}
        setattr(made, id_name, f"{model}-{next(self._ids)}")
        held.append(made)
        then(made)
        return 200, made

    def _run(self, run_id: str) -> Answer:
        run = next((run for run in self.runs if run.run_id == run_id), None)
        if run is None:
            return 404, {"error": f"Run {run_id} not found", "code": 5}
        state, tasks = self.course.pop(0) if len(self.course) > 1 else self.course[0]
        details = [{"display_name": name, "state": state} for name, state in tasks.items()]
        return 200, read("V2beta1Run", {
            "run_id": run.run_id, "state": state, "run_details": {"task_details": details},
            "runtime_config": _CLIENT.sanitize_for_serialization(run.runtime_config),
            "created_at": self.began, "finished_at": self.ended if state in ("SUCCEEDED", "FAILED") else None,
        })  # fmt: skip


_ID = {
    "pipelines": "pipeline_id",
    "experiments": "experiment_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
_LIST = {"pipelines": "pipelines", "experiments": "experiments", "runs": "runs", "recurringruns": "recurringRuns"}
_CLIENT_MODEL = {"pipelines": "V2beta1Pipeline", "experiments": "V2beta1Experiment", "runs": "V2beta1Run",
                 "recurringruns": "V2beta1RecurringRun", "versions": "V2beta1PipelineVersion"}  # fmt: skip


def read(model: str, body: dict[str, Any]) -> Any:
    """``body`` as kfp's ``model``; a field that it does not have is an error."""
    known = getattr(api, model).attribute_map.values()
    assert set(body) <= set(known), f"{model} has no {set(body) - set(known)}"

    class Response:
        data = json.dumps(body)

    return _CLIENT.deserialize(Response, model)


def _named(text: str | None) -> str | None:
    if not text:
        return None
    (predicate,) = json.loads(text)["predicates"]
    assert (predicate["operation"] in (1, "EQUALS"), predicate["key"]) == (True, "display_name")
    return predicate["stringValue"]


def _file_of(body: bytes, headers: Message) -> bytes:
    message = BytesParser().parsebytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body)
    (part,) = [part for part in message.walk() if part.get_filename()]
    return part.get_payload(decode=True)


@contextmanager
def serving() -> Iterator[KfpApi]:
    """A server on a free port; ``url`` says where."""
    state = KfpApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            state.requests.append(
                (self.command, parts.path, {name.lower(): value for name, value in self.headers.items()})
            )
            answer = state.intercept(self.command, parts.path)
            if answer is None:
                answer = state.answer(self.command, parts.path, query, body, self.headers)
            status, content = (200, answer) if isinstance(answer, bytes) else answer
            if not isinstance(content, bytes):
                content = json.dumps(_CLIENT.sanitize_for_serialization(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
