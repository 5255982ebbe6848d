"""A cluster over real HTTP: the Kubernetes API for the official client, and its Services behind an HTTP proxy."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.deploy.cluster.kserve import Controller
from tests.deploy.cluster.store import GROUPS, Object, Refusal, Store
from tests.deploy.service import Service

RBAC = Path(__file__).parents[3] / "manifests" / "rbac" / "deploy.yaml"
_PATH = re.compile(r"^/api(?:s/(?P<group>[^/]+))?/[^/]+/namespaces/(?P<ns>[^/]+)/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
                   r"(?:/(?P<sub>[^/]+))?$")  # fmt: skip
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
Fault = Callable[[str, str], tuple[int, str] | None]


class StandInCluster:
    """``rules`` are what the caller may do. ``fault`` may answer a request instead, by verb and path.

    ``serves`` says which service stands in a release's pods. ``requests`` are (verb, group, resource) of each one;
    ``answered`` are (Service, release) of each request to a Service, ``applied`` the objects of server-side apply.
    """

    def __init__(self, serves: Callable[[Object], Service]) -> None:
        self.store = Store()
        self.controller = Controller(self.store)
        self.serves = serves
        self.rules = role_rules()
        self.fault: Fault = lambda *_: None
        self.breaks: Callable[[str, str], bool] = lambda *_: False
        self.requests: list[tuple[str, str, str]] = []
        self.answered: list[tuple[str, str]] = []
        self.applied: list[Object] = []
        self.url = self.proxy = ""

    # The Kubernetes API

    def answer(self, method: str, url: str, content_type: str, body: Object | None) -> tuple[int, Any]:
        """Status and body of one request to the API server."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        if parts.path.endswith("/selfsubjectaccessreviews"):
            wanted = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            allowed = self._allows(wanted["verb"], wanted.get("group", ""), resource)
            return 201, {**body, "status": {"allowed": allowed and wanted["namespace"] == self.store.namespace}}
        found = _PATH.match(parts.path)
        if (
            not found
            or found["plural"] not in self.store.installed
            or GROUPS[found["plural"]] != (found["group"] or "")
        ):
            return 404, "404 page not found\n"
        if (fault := self.fault(method, parts.path)) is not None:
            return fault[0], {"kind": "Status", "status": "Failure", "message": fault[1], "code": fault[0]}
        try:
            with self.store.lock:
                return self._act(method, found, query, content_type, body)
        except Refusal as refusal:
            return refusal.code, refusal.status

    def _act(self, method: str, found: Any, query: dict[str, str], content_type: str, body: Object | None) -> Any:
        plural, name = found["plural"], found["name"]
        resource = "/".join(filter(None, (plural, found["sub"])))
        verb = _VERBS.get(method) or ("get" if name else "list")
        self._authorise(verb, found, resource)
        if found["ns"] != self.store.namespace:
            message = f'namespaces "{found["ns"]}" not found'
            if method in ("POST", "PATCH"):
                raise Refusal(404, "NotFound", message, name=found["ns"], kind="namespaces")
        if found["sub"] == "log":
            return 200, self._log(name, query)
        if verb == "list":
            selectors = (_selector(query.get(key, "")) for key in ("labelSelector", "fieldSelector"))
            return 200, {"kind": "List", "metadata": {}, "items": self.store.list(plural, *selectors)}
        if verb == "get":
            if plural == "inferenceservices":
                self.controller.looked_at(name)
            return 200, self.store.get(plural, name)
        if verb == "create":
            return 201, self.store.create(plural, body)
        if verb == "update":
            return 200, self.store.replace(plural, name, body)
        if verb == "delete":
            self.store.get(plural, name)
            self.controller.delete(name) if plural == "inferenceservices" else self.store.delete(plural, name)
            return 200, {"kind": "Status", "status": "Success"}
        if content_type != "application/apply-patch+yaml":
            raise Refusal(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        if "fieldManager" not in query:
            raise Refusal(422, "Invalid", "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value")
        how = {"manager": query["fieldManager"], "force": query.get("force") == "true"}
        if (plural, name) not in self.store.objects:
            self._authorise("create", found, resource)
        if query.get("dryRun") != "All":
            self.applied.append(body)
        found = self.store.apply(plural, name, body, dry_run=query.get("dryRun") == "All", **how)
        if plural == "inferenceservices" and name in {stored for kind, stored in self.store.objects if kind == plural}:
            self.controller.applied(name)
        return 200, found

    def _authorise(self, verb: str, found: Any, resource: str) -> None:
        group = found["group"] or ""
        self.requests.append((verb, group, resource))
        if not self._allows(verb, group, resource):
            where = f'{resource.partition("/")[0]}{"." + group if group else ""} "{found["name"] or ""}"'
            who = f"system:serviceaccount:{self.store.namespace}:nemotron-embed-deploy"
            message = (
                f'{where} is forbidden: User "{who}" cannot {verb} resource "{resource}" in API group "{group}" in the '
                f'namespace "{found["ns"]}"'
            )
            raise Refusal(403, "Forbidden", message)

    def _allows(self, verb: str, group: str, resource: str) -> bool:
        return any(verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
                   for rule in self.rules)  # fmt: skip

    def _log(self, pod: str, query: dict[str, str]) -> str:
        service = self.store.objects.get(("inferenceservices", pod.removesuffix("-predictor-0")))
        return self.controller.fate(service).log if service else ""

    # Services

    def forward(self, method: str, host: str, path: str, body: Object | None) -> tuple[int, Any]:
        """The answer of a pod behind the Service ``host``; 502 stands for one that cannot be reached."""
        name, _, rest = host.partition(".")
        with self.store.lock:
            behind = self._behind(name) if rest == f"{self.store.namespace}.svc.cluster.local" else None
            if behind is None:
                return 502, "nobody answers"
            self.answered.append((name, behind))
            service = self.serves(self.store.objects["inferenceservices", behind])
        if method == "POST":
            status, content = service.answer(path, body)
            if status == 200 and self.breaks(name, behind):
                content = {"data": [{**row, "embedding": row["embedding"][::-1]} for row in content["data"]]}
            return status, content
        return 200, {"data": [{"id": service.name}]}

    def _behind(self, name: str) -> str | None:
        found = self.store.objects.get(("services", name))
        for (plural, pod), item in self.store.objects.items():
            if found and plural == "pods" and item["metadata"]["labels"] == found["spec"]["selector"]:
                release = pod.removesuffix("-predictor-0")
                return release if self.controller.is_ready(release) else None
        return None


def role_rules() -> list[Object]:
    """The rules of the Role that the project ships."""
    (role,) = [item for item in yaml.safe_load_all(RBAC.read_text(encoding="utf-8")) if item["kind"] == "Role"]
    return role["rules"]


@contextmanager
def running(cluster: StandInCluster) -> Iterator[StandInCluster]:
    """``cluster`` with its API server at ``url`` and the way to its Services at ``proxy``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            body = json.loads(text) if text else None
            parts = urlsplit(self.path)
            if parts.scheme:
                status, content = cluster.forward(self.command, parts.hostname or "", parts.path, body)
            else:
                kind = self.headers.get("Content-Type", "")
                if self.headers.get("Authorization") == "Bearer expired":
                    cluster_answer = (
                        401,
                        {"kind": "Status", "status": "Failure", "code": 401, "message": "Unauthorized"},
                    )
                    return self.reply(*cluster_answer)
                status, content = cluster.answer(self.command, self.path, kind, body)
            self.reply(status, content)

        def reply(self, status: int, content: Any) -> None:
            sent = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    cluster.url = cluster.proxy = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(path: Path, cluster: StandInCluster) -> None:
    """A kubeconfig whose context is the stand-in and its namespace."""
    context = {"cluster": "c", "user": "u", "namespace": cluster.store.namespace}
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
        "users": [{"name": "u", "user": {"token": "canary-token"}}],
        "contexts": [{"name": "x", "context": context}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def _selector(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)
