"""A real S3: Ceph's object gateway with one monitor and one store in memory, from a distribution's packages.

apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.store import from_url

_PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
_CLASSES = (
    "/usr/lib/x86_64-linux-gnu/rados-classes",
    "/usr/lib/aarch64-linux-gnu/rados-classes",
    "/usr/lib64/rados-classes",
)
_KEY, _SECRET = "CEPHTESTKEY", "ceph-test-secret"


@dataclass
class Ceph:
    """A running gateway."""

    url: str
    environment: dict[str, str] = field(default_factory=dict)


def why_no_ceph() -> str:
    """Why it cannot be started here; empty when it can."""
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    return f"{', '.join(missing)} not installed (Debian: radosgw ceph-mon ceph-osd ceph-common)" if missing else ""


@contextmanager
def ceph_s3() -> Iterator[Ceph]:
    """Start it, with a bucket called ``bucket``; stop and forget it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="ceph-"))
    started: list[subprocess.Popen[bytes]] = []
    try:
        try:
            port = _start(directory, started)
        except (TimeoutError, subprocess.SubprocessError) as error:
            said = "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(directory.glob("*.out")))
            raise RuntimeError(f"Ceph did not start ({error}):\n{said}") from error
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        _make_bucket(environment)
        yield Ceph(f"http://127.0.0.1:{port}", environment)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, started: list[subprocess.Popen[bytes]]) -> int:
    monitor, gateway = _free_port(), _free_port()
    cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd0", "run"):
        (directory / name).mkdir()
    config = directory / "ceph.conf"
    config.write_text(_config(directory, cluster, monitor, gateway))
    ceph = ["ceph", "-c", str(config)]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=120)

    def start(*command: str) -> None:
        with (directory / f"{command[0]}.out").open("wb") as out:
            started.append(subprocess.Popen(command, cwd=directory, stdout=out, stderr=out))

    run("monmaptool", "--create", "--clobber", "--fsid", cluster, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", "monmap")
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "-c", str(config))
    start("ceph-mon", "-i", "a", "-c", str(config), "-f")
    _wait(lambda: subprocess.run([*ceph, "-s"], capture_output=True, timeout=20, check=False).returncode == 0)
    run(*ceph, "osd", "new", disk)
    run(*ceph, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=h")
    run("ceph-osd", "-i", "0", "-c", str(config), "--mkfs", "--osd-uuid", disk)
    for _ in range(4):
        # On a busy machine the first start may miss the monitor's answer, and wait for it for ever.
        start("ceph-osd", "-i", "0", "-c", str(config), "-f")
        with suppress(TimeoutError):
            _wait(
                lambda: b"1 up" in subprocess.run([*ceph, "osd", "stat"], capture_output=True, check=False).stdout, 25
            )
            break
        started[-1].kill()
        started[-1].wait()
    user = ("user", "create", "--uid=test", "--display-name=test", f"--access-key={_KEY}", f"--secret-key={_SECRET}")
    run("radosgw-admin", "-n", "client.rgw.x", "-c", str(config), *user)
    start("radosgw", "-n", "client.rgw.x", "-c", str(config), "-f")
    _wait(lambda: _answers(gateway))
    return gateway


def _config(directory: Path, cluster: str, monitor: int, gateway: int) -> str:
    classes = next((place for place in _CLASSES if Path(place).is_dir()), _CLASSES[0])
    settings = {
        "fsid": cluster, "mon host": f"v1:127.0.0.1:{monitor}", "mon initial members": "a",
        "auth cluster required": "none", "auth service required": "none", "auth client required": "none",
        "run dir": directory / "run", "admin socket": "", "pid file": "", "log file": directory / "$name.log",
        "public network": "127.0.0.0/8", "ms bind ipv6": "false", "ms bind msgr2": "false",
        "osd pool default size": 1, "osd pool default min size": 1, "osd pool default pg num": 4,
        "osd pool default pgp num": 4, "osd pool default pg autoscale mode": "off", "osd crush chooseleaf type": 0,
        "mon allow pool size one": "true", "mon warn on pool no redundancy": "false", "mon data": directory / "mon",
        "mon max pg per osd": 1000, "osd data": directory / "osd0", "osd objectstore": "memstore",
        "osd class dir": classes, "memstore page set": "true", "memstore device bytes": 4 * 2**30,
        "osd crush update on start": "false", "rgw enable apis": "s3",
    }  # fmt: skip
    lines = [f"{name} = {value}" for name, value in settings.items()]
    rgw = [f"rgw frontends = beast endpoint=127.0.0.1:{gateway}", "rgw run sync thread = false"]
    return "\n".join(["[global]", *lines, "[client.rgw.x]", *rgw, "rgw dynamic resharding = false", ""])


def _make_bucket(environment: dict[str, str]) -> None:
    """obstore has no call for it: it signs the request, and an HTTP client sends it."""
    store = from_url(
        "s3://bucket",
        endpoint=environment["AWS_ENDPOINT_URL"],
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    httpx.put(obstore.sign(store, "PUT", "", timedelta(minutes=5)), timeout=60).raise_for_status()
    # The first write makes the gateway's pools.
    store.put("ready", b"")


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("Ceph did not start")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
