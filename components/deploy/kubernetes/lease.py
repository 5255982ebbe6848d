"""One deployment of a service at a time, and the newest wins: a Kubernetes Lease with a counter of deployments."""

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
from components.core.kubernetes.errors import WriteConflict
from components.core.kubernetes.resource_kinds import Object
from components.deploy.kubernetes.cluster import Cluster
from components.deploy.labels import GROUP

TICKET = f"{GROUP}/ticket"
_DURATION_SECONDS = 30
_log = logging.getLogger(__name__)


class Superseded(Transient):
    """A newer deployment of the same service has started, so this one ends."""


class DeployLease:
    """The right of one deployment to change the service, kept as a Lease in the cluster.

    ``ticket`` numbers deployments by their start. A later ticket ends an earlier deployment at its next ``check``; a
    holder that was killed loses the lease when it has not renewed it for ``duration`` seconds. ``poll`` is the time
    in seconds between two reads of a Lease that another deployment holds.
    """

    def __init__(
        self, cluster: Cluster, service: str, *, poll: float = 1.0, duration: float = _DURATION_SECONDS
    ) -> None:
        self._cluster, self._service, self._poll, self._duration = cluster, service, poll, duration
        self._name = f"{service}-deploy"
        self._holder = f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        self._renewed = 0.0
        self._lost = False
        self._newest = self.ticket = 0

    @contextlib.contextmanager
    def hold(self, timeout: float) -> Iterator[DeployLease]:
        """Wait for the lease, renew it in the background, and release it at the end.

        Raises Superseded when a newer deployment has started, Transient after ``timeout`` seconds.
        """
        self.ticket = self._draw_ticket()
        self._acquire(timeout)
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew_until, args=(ended,), daemon=True)
        renewal.start()
        try:
            yield self
        finally:
            ended.set()
            renewal.join()
            self._release()

    def check(self) -> None:
        """Raise Superseded when a newer deployment has started, Transient when the lease was lost."""
        if self._newest > self.ticket:
            raise Superseded(f"a newer deployment of {self._service} has started: it replaces this one")
        if self._lost or time.monotonic() > self._renewed + self._duration:
            raise Transient(
                f"lost the lease to deploy {self._service}: the Kubernetes API could not be reached in time"
            )

    def check_now(self) -> None:
        """Read the Lease again, then ``check``."""
        self._renew()
        self.check()

    def _draw_ticket(self) -> int:
        return _ticket(self._update(self._count_up))

    def _count_up(self, lease: Object) -> bool:
        lease["metadata"].setdefault("annotations", {})[TICKET] = str(_ticket(lease) + 1)
        return True

    def _acquire(self, timeout: float) -> None:
        """Take the Lease when it is free, or when its holder has not renewed it for its whole duration.

        Clocks of two machines differ: how long a holder has been silent is measured by this one's alone.
        """
        deadline = time.monotonic() + timeout
        last_renewal: tuple[str | None, str | None] = (None, None)
        since = time.monotonic()
        while True:
            lease = self._read()
            self._newest = _ticket(lease)
            if self._newest > self.ticket:
                raise Superseded(f"a newer deployment of {self._service} has started: it replaces this one")
            spec = lease["spec"]
            holder = spec.get("holderIdentity")
            renewal = (holder, spec.get("renewTime"))
            if renewal != last_renewal:
                last_renewal, since = renewal, time.monotonic()
            is_silent = time.monotonic() - since > spec.get("leaseDurationSeconds", self._duration)
            if not holder or is_silent:
                with contextlib.suppress(WriteConflict):
                    self._write(lease, holder=self._holder)
                    return
            elif time.monotonic() > deadline:
                raise Transient(f"another deployment of {self._service} ({holder}) does not end: run again later")
            time.sleep(self._poll)

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._duration / 6):
            try:
                self._renew()
            except StageError as error:
                _log.warning("the lease to deploy could not be renewed: %s", error)

    def _renew(self) -> None:
        def is_mine(lease: Object) -> bool:
            self._newest = max(self._newest, _ticket(lease))
            self._lost = lease["spec"].get("holderIdentity") != self._holder
            return not self._lost

        self._update(is_mine, holder=self._holder)

    def _release(self) -> None:
        try:
            self._update(lambda lease: lease["spec"].get("holderIdentity") == self._holder, holder="")
        except StageError as error:
            _log.warning("the lease to deploy could not be released and will expire: %s", error)

    def _update(self, change: Callable[[Object], bool], *, holder: str | None = None) -> Object:
        """Change the Lease as ``change`` does, or leave it when that returns False; retry when others were faster."""
        while True:
            lease = self._read()
            if not change(lease):
                return lease
            with contextlib.suppress(WriteConflict):
                return self._write(lease, holder=holder)

    def _write(self, lease: Object, *, holder: str | None) -> Object:
        began = time.monotonic()
        if holder is not None:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            fields = {"holderIdentity": holder, "renewTime": now, "leaseDurationSeconds": max(1, int(self._duration))}
            lease = {**lease, "spec": {**lease["spec"], **fields}}
        written = self._cluster.replace(lease)
        if holder == self._holder:
            self._renewed = began
        return written

    def _read(self) -> Object:
        while True:
            if lease := self._cluster.get("Lease", self._name):
                lease.setdefault("spec", {})
                return lease
            empty = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            with contextlib.suppress(WriteConflict):
                self._cluster.create({**empty, "spec": {}})


def _ticket(lease: Object) -> int:
    return int(lease["metadata"].get("annotations", {}).get(TICKET, "0"))
