"""Files of a history: in a directory, or under a prefix of a bucket."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.core.errors import ActionNeeded, InputError

_SCHEMES = ("s3", "gs")
_CHUNK_BYTES = 8 * 2**20


class HistoryStore:
    """Whole files by name ("a/b"); each appears whole or not at all.

    Buckets find their credentials in the environment, as the clouds' own tools do. Raises InputError for an address
    that is none, ActionNeeded for a place that cannot be read or written.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        # Runs without a history need no obstore.
        from obstore.store import LocalStore, from_url  # noqa: PLC0415

        scheme, separator, rest = uri.partition("://")
        try:
            if not separator:
                self._store: Any = LocalStore(Path(uri).absolute(), mkdir=True)
            else:
                scheme = {"minio": "s3"}.get(scheme, scheme)
                if scheme not in _SCHEMES:
                    raise ValueError("expected a directory, s3://bucket/prefix or gs://bucket/prefix")
                # Object stores inside of a cluster are often reached without TLS.
                plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
                options: Any = {"allow_http": True} if plain else None
                self._store = from_url(f"{scheme}://{rest.rstrip('/')}", client_options=options)
        except Exception as error:
            raise InputError(f"history_uri = {uri} is no address of a history ({_short(error)})") from None

    def names(self, prefix: str) -> list[str]:
        """Names below ``prefix``, which ends with a slash."""
        with self._asking():
            return sorted(entry["path"] for batch in self._store.list(prefix.rstrip("/")) for entry in batch)

    def read(self, name: str) -> bytes:
        with self._asking():
            return bytes(self._store.get(name).bytes())

    def copy(self, name: str, target: Path) -> None:
        """Copy a file to this machine."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._asking(), target.open("wb") as out:
            for chunk in self._store.get(name).stream(min_chunk_size=_CHUNK_BYTES):
                out.write(chunk)

    def write(self, name: str, content: bytes | Path) -> None:
        with self._asking():
            self._store.put(name, content)

    def delete(self, names: Iterable[str]) -> None:
        with self._asking():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._store.delete(name)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        from obstore.exceptions import BaseError  # noqa: PLC0415

        try:
            yield
        except (BaseError, OSError) as error:
            raise ActionNeeded(
                f"history_uri = {self._uri} cannot be read and written ({_short(error)}): check the address, "
                f"credentials and rights"
            ) from None


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
