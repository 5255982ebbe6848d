"""One deployment of a service at a time, and the newest wins: a Lease with a counter of those who came."""

from __future__ import annotations

import contextlib
import datetime
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from components.core.errors import StageError, Transient
from components.deploy.kubernetes.cluster import Cluster, Conflict
from components.deploy.labels import GROUP, Object

TICKET = f"{GROUP}/ticket"
_DURATION_SECONDS = 30
_log = logging.getLogger(__name__)


class Superseded(Transient):
    """A newer deployment of the same service has come: this one gives up."""


class Turn:
    """This deployment's turn to change the service.

    ``ticket`` counts deployments by their start. A later ticket ends an earlier deployment at its next ``check``; a
    holder that was killed loses its turn when it has not renewed for ``duration`` seconds. ``poll`` is the time
    between two looks at a Lease that somebody else holds.
    """

    def __init__(
        self, cluster: Cluster, service: str, *, poll: float = 1.0, duration: float = _DURATION_SECONDS
    ) -> None:
        self._cluster, self._service, self._poll, self._duration = cluster, service, poll, duration
        self._lease = f"{service}-deploy"
        self._holder = f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        self._renewed = 0.0
        self._lost = False
        self._newest = self.ticket = 0

    @contextlib.contextmanager
    def taken(self, timeout: float) -> Iterator[Turn]:
        """Wait for the turn, keep it by renewing, give it back. Raises Superseded, or Transient after ``timeout``."""
        self.ticket = self._draw()
        self._acquire(timeout)
        ended = threading.Event()
        renewal = threading.Thread(target=self._keep, args=(ended,), daemon=True)
        renewal.start()
        try:
            yield self
        finally:
            ended.set()
            renewal.join()
            self._give_back()

    def check(self) -> None:
        """Raises Superseded when a newer deployment has come, Transient when the turn was lost."""
        if self._newest > self.ticket:
            raise Superseded(f"a newer deployment of {self._service} has started: it replaces this one")
        if self._lost or time.monotonic() > self._renewed + self._duration:
            raise Transient(f"lost the turn to deploy {self._service}: the Kubernetes API could not be reached in time")

    def check_now(self) -> None:
        """``check`` after a fresh look."""
        self._renew()
        self.check()

    def _draw(self) -> int:
        return _ticket(self._change(self._count_up))

    def _count_up(self, lease: Object) -> bool:
        lease["metadata"].setdefault("annotations", {})[TICKET] = str(_ticket(lease) + 1)
        return True

    def _acquire(self, timeout: float) -> None:
        """Take the Lease when it is free, or when its holder has not renewed it for its whole duration.

        Clocks of two machines differ: how long a holder has been silent is measured by this one's alone.
        """
        deadline = time.monotonic() + timeout
        seen: tuple[str | None, str | None] = (None, None)
        since = time.monotonic()
        while True:
            lease = self._read()
            self._newest = _ticket(lease)
            if self._newest > self.ticket:
                raise Superseded(f"a newer deployment of {self._service} has started: it replaces this one")
            spec = lease["spec"]
            found = (spec.get("holderIdentity"), spec.get("renewTime"))
            if found != seen:
                seen, since = found, time.monotonic()
            silent = time.monotonic() - since > spec.get("leaseDurationSeconds", self._duration)
            if not found[0] or silent:
                with contextlib.suppress(Conflict):
                    self._write(lease, holder=self._holder)
                    return
            elif time.monotonic() > deadline:
                raise Transient(f"another deployment of {self._service} ({found[0]}) does not end: run again later")
            time.sleep(self._poll)

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._duration / 6):
            try:
                self._renew()
            except StageError as error:
                _log.warning("the turn to deploy could not be renewed: %s", error)

    def _renew(self) -> None:
        def mine(lease: Object) -> bool:
            self._newest = max(self._newest, _ticket(lease))
            self._lost = lease["spec"].get("holderIdentity") != self._holder
            return not self._lost

        self._change(mine, holder=self._holder)

    def _give_back(self) -> None:
        try:
            self._change(lambda lease: lease["spec"].get("holderIdentity") == self._holder, holder="")
        except StageError as error:
            _log.warning("the turn to deploy runs out by itself: %s", error)

    def _change(self, wanted: Callable[[Object], bool], *, holder: str | None = None) -> Object:
        """Change the Lease as ``wanted`` does, or leave it when that says False; again when others were faster."""
        while True:
            lease = self._read()
            if not wanted(lease):
                return lease
            with contextlib.suppress(Conflict):
                return self._write(lease, holder=holder)

    def _write(self, lease: Object, *, holder: str | None) -> Object:
        began = time.monotonic()
        if holder is not None:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            changed = {"holderIdentity": holder, "renewTime": now, "leaseDurationSeconds": max(1, int(self._duration))}
            lease = {**lease, "spec": {**lease["spec"], **changed}}
        found = self._cluster.replace(lease)
        if holder == self._holder:
            self._renewed = began
        return found

    def _read(self) -> Object:
        while True:
            if lease := self._cluster.get("Lease", self._lease):
                lease.setdefault("spec", {})
                return lease
            empty = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._lease}}
            with contextlib.suppress(Conflict):
                self._cluster.create({**empty, "spec": {}})


def _ticket(lease: Object) -> int:
    return int(lease["metadata"].get("annotations", {}).get(TICKET, "0"))
