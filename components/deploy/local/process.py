"""The embedding server as a process of this machine: start it, wait for it, recognise it, stop it."""

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

import psutil
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
    """A server process that was started.

    ``started`` is the system's own record of when it started, which tells it from a later process with the same id.
    """

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
        """Address at which clients of this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def is_running(self) -> bool:
        """Return whether that very process runs, and is our server."""
        identity = _read_identity(self.pid)
        if identity is None:
            return False
        started, command = identity
        return started == self.started and _SERVER in command and self.name in command


def start_server(release: Path, *, name: str, digest: str, host: str, port: int, log: Path) -> ServerProcess:
    """Start a server of ``release`` that outlives this process, in a session of its own; its output goes to ``log``."""
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
    identity = _read_identity(process.pid)
    started = identity[0] if identity else ""
    return ServerProcess(pid=process.pid, started=started, name=name, digest=digest, host=host, port=port, log=str(log))


def wait_until_ready(service: ServerProcess, timeout: float) -> None:
    """Wait until the server is ready. Raises ActionNeeded when it ends, or is not ready within ``timeout`` seconds."""
    began = time.monotonic()
    with EmbeddingClient(service.url, service.name, timeout=5.0) as client:
        while not client.is_ready():
            if not service.is_running():
                raise ActionNeeded(f"the server ended before it was ready: {_read_last_lines(service)}")
            if time.monotonic() - began > timeout:
                raise ActionNeeded(
                    f"the server was not ready within {timeout:g} s ({_read_last_lines(service)}): "
                    f"raise health_check_timeout, or read {service.log}"
                )
            time.sleep(_POLL_SECONDS)
    _log.info("server %d ready at %s in %.1f s", service.pid, service.url, time.monotonic() - began)


def stop_server(service: ServerProcess) -> bool:
    """Stop the server with SIGTERM, then SIGKILL. Return False when it does not run or the process is not ours."""
    if not service.is_running():
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(service.pid, number)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if not service.is_running():
                _log.info("server %d at %s stopped", service.pid, service.url)
                return True
            time.sleep(_POLL_SECONDS)
    raise ActionNeeded(f"process {service.pid} does not end: end it by hand")


def find_free_port(host: str) -> int:
    """Return a port of ``host`` that nobody listens on now. Raises InputError when one cannot listen there."""
    port = _try_port(host, 0)
    assert port is not None
    return port


def is_port_free(host: str, port: int) -> bool:
    """Return whether ``port`` is free. Raises InputError when one cannot listen there for another reason."""
    return _try_port(host, port) is not None


def _try_port(host: str, port: int) -> int | None:
    """Bind the port and give it back; return its number, or None when it is taken."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: connections of a server that just ended do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise InputError(f"cannot listen on host {host}, port {port} ({error}): change host or host_port") from None
        return int(probe.getsockname()[1])


def _read_identity(pid: int) -> tuple[str, str] | None:
    """Return when the process started, and its command line; None when it has ended or cannot be read."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return None
            started, command = process.create_time(), " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    # Linux records the time since the boot. psutil adds the time of the boot, which moves when the clock is set.
    return f"{started - psutil.boot_time() if psutil.LINUX else started:.2f}", command


def _read_last_lines(service: ServerProcess) -> str:
    try:
        lines = Path(service.log).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_SHOWN_LINES:]
    except OSError:
        lines = []
    for line in lines:
        _log.error("server: %s", line)
    return lines[-1] if lines else f"it wrote nothing to {service.log}"
