"""The server as a process of this machine: started, waited for, recognised, stopped."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import components
from components.core.errors import ActionNeeded, InputError
from components.core.serving.client import EmbeddingClient

_SERVER = "components.server"
_POLL_SECONDS = 0.1
# The server finishes requests in flight for up to 30 seconds.
_STOP_SECONDS = 35.0
_SHOWN_LINES = 10
_log = logging.getLogger(__name__)


class ServerProcess(BaseModel):
    """A server that was started. ``started`` is the system's own record of when: process ids are used again."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str
    name: str
    digest: str
    host: str
    port: int
    log: str
    version: str = components.__version__

    @property
    def url(self) -> str:
        """Where clients of this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def is_running(self) -> bool:
        """Whether that very process is there, and is our server."""
        found = _identity(self.pid)
        return found is not None and found[0] == self.started and _SERVER in found[1] and self.name in found[1]


def start_server(release: Path, *, name: str, digest: str, host: str, port: int, log: Path) -> ServerProcess:
    """A server of ``release`` in a session of its own, which outlives this process; its output goes to ``log``."""
    command = [sys.executable, "-m", _SERVER, "--model", str(release), "--name", name]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            # Where `components` lies, and a directory that nobody removes.
            cwd=Path(components.__file__).parents[1],
            start_new_session=True,
        )
    found = _identity(process.pid)
    started = found[0] if found else ""
    return ServerProcess(pid=process.pid, started=started, name=name, digest=digest, host=host, port=port, log=str(log))


def wait_until_ready(service: ServerProcess, timeout: float) -> None:
    """Raises ActionNeeded when the server ends, or is not ready within ``timeout`` seconds."""
    began = time.monotonic()
    with EmbeddingClient(service.url, service.name, timeout=5.0) as endpoint:
        while not endpoint.is_ready():
            if not service.is_running():
                raise ActionNeeded(f"the server ended before it was ready: {_last_lines(service)}")
            if time.monotonic() - began > timeout:
                raise ActionNeeded(
                    f"the server was not ready within {timeout:g} s ({_last_lines(service)}): "
                    f"raise health_check_timeout, or read {service.log}"
                )
            time.sleep(_POLL_SECONDS)
    _log.info("server %d ready at %s in %.1f s", service.pid, service.url, time.monotonic() - began)


def stop_server(service: ServerProcess) -> bool:
    """End the server, kindly at first; False when it is not there or that process is not ours."""
    if not service.is_running():
        return False
    for number, patience in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
        os.kill(service.pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not service.is_running():
                _log.info("server %d at %s stopped", service.pid, service.url)
                return True
            time.sleep(_POLL_SECONDS)
    raise ActionNeeded(f"process {service.pid} does not end: end it by hand")


def find_free_port(host: str) -> int:
    """A port of ``host`` that nobody listens on now. Raises InputError when one cannot listen there."""
    port = _listen(host, 0)
    assert port is not None
    return port


def is_port_free(host: str, port: int) -> bool:
    """Whether nobody listens on ``port``. Raises InputError when one cannot listen there for another reason."""
    return _listen(host, port) is not None


def _listen(host: str, port: int) -> int | None:
    """The port, once bound and given back; None when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: connections of a server that just ended do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise InputError(f"cannot listen on host {host}, port {port} ({error}): change host or host_port") from None
        return probe.getsockname()[1]


def _identity(pid: int) -> tuple[str, str] | None:
    """When the process started, in the system's words, and its command line; None when it has ended."""
    if not Path("/proc/self/stat").exists():
        return _identity_by_ps(pid)
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        # Start times count from the boot.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else (f"{boot} {fields[18]}", command)


def _identity_by_ps(pid: int) -> tuple[str, str] | None:
    argv = ["ps", "-ww", "-o", "lstart=", "-o", "command=", "-p", str(pid)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    line = shown.stdout.strip()
    return (line[:24], line[24:].strip()) if line else None


def _last_lines(service: ServerProcess) -> str:
    try:
        lines = Path(service.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_SHOWN_LINES:]
    except OSError:
        lines = []
    for line in lines:
        _log.error("server: %s", line)
    return lines[-1] if lines else f"it wrote nothing to {service.log}"
