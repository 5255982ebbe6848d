"""Which cluster deploy talks to, and as whom."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from components.__main__ import main
from components.core.errors import ActionNeeded, InputError, Transient
from components.core.kubernetes import client, connection
from components.deploy.kubernetes.cluster import connect
from tests.deploy.certificate import write_self_signed
from tests.deploy.conftest import Team


class Pod:
    """What a pod's service account finds; ``seen`` are path and Authorization of each request."""

    def __init__(self, directory: Path) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.certificate, self.key = directory / "ca.crt", directory / "key.pem"
        (directory / "token").write_text("token-of-the-pod")
        (directory / "namespace").write_text("team-b\n")
        write_self_signed(self.certificate, self.key, "test")


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    pod = Pod(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pod.seen.append((self.path, self.headers["Authorization"]))
            body = json.dumps({"items": [{"metadata": {"name": "one"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pod.certificate, pod.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(pod.certificate))
    monkeypatch.setattr(connection, "_NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setattr(client, "RETRIES", replace(client.RETRIES, first_wait=0.01))
    yield pod
    server.shutdown()
    server.server_close()


def test_in_a_pod_as_its_service_account_in_its_namespace(pod: Pod) -> None:
    cluster = connect("")
    assert cluster.namespace == "team-b"
    assert cluster.list("Pod", labels="app=x")[0]["metadata"]["name"] == "one"
    ((path, authorization),) = pod.seen
    assert path == "/api/v1/namespaces/team-b/pods?labelSelector=app%3Dx"
    assert (authorization or "").lower() == "bearer token-of-the-pod"
    assert connect("team-c").namespace == "team-c"


def test_an_api_server_of_another_authority_is_not_believed(pod: Pod, tmp_path: Path) -> None:
    write_self_signed(pod.certificate, tmp_path / "another.pem", "test")
    with pytest.raises(ActionNeeded, match=r"CERTIFICATE_VERIFY_FAILED.*certificate authority"):
        connect("").list("Pod")
    assert pod.seen == []


def test_by_kubeconfig_in_the_contexts_namespace(team: Team) -> None:
    assert connect("").namespace == "team-a"
    assert connect("elsewhere").namespace == "elsewhere"


def test_without_a_cluster_one_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="set target=local"):
        connect("")


def test_an_api_server_that_is_away_is_waited_for_and_then_given_up(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(Transient, match="did not answer 6 times"):
        connect("").list("Pod")


def test_a_whole_run_on_one_machine_is_refused_before_its_first_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a text")
    command = ["run", "--corpus", str(tmp_path / "corpus"), "--work", str(tmp_path / "work")]
    assert main(command) == 2
    assert "set release_prefix, or deploy.target=local" in capsys.readouterr().err
    assert main([*command, "deploy.release_prefix=s3://models"]) == 2
    assert "needs a cluster" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
