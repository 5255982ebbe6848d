"""The runs on durable storage: their records, and the models and test sets that they leave to later runs."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from components.core.artifacts import MANIFEST, verify
from components.core.errors import ActionNeeded, InputError
from components.core.history.records import CorpusChange, Promotion, Record, RunRecord, Verdict
from components.core.store import open_store, read_file_chunks
from components.core.store.errors import translate_errors

SHOWN_RUNS = 20
_DOCUMENTS_FILE = "documents.json"
_DIGESTS = TypeAdapter(dict[str, str])
_log = logging.getLogger(__name__)
RecordType = TypeVar("RecordType", bound=Record)


class History:
    """The runs at ``uri``: a directory, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    Raises InputError for another address, and the errors of ``to_stage_error`` when storage cannot be read or written.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._store = open_store(uri, setting="history_uri")

    def read_runs(self, *, since: str = "", newest: int | None = None) -> list[RunRecord]:
        """Return the runs whose names are not before ``since``, oldest first; only the ``newest`` so many if given."""
        files = self._files_by_run()
        names = [name for name in files if name >= since]
        return [self._read_run(name, files[name]) for name in (names if newest is None else names[-newest:])]

    def summarize_last_runs(self) -> list[str]:
        """Return a line for each of the last runs, newest first, as reports show them."""
        return [run.summary() for run in reversed(self.read_runs(newest=SHOWN_RUNS))]

    def read_run(self, name: str) -> RunRecord:
        """Return the records of the run ``name``, empty when there is no such run."""
        return self._read_run(name, self._files_by_run().get(name, set()))

    def find_champion(self) -> str | None:
        """Return the name of the run whose model is served."""
        newest_first = reversed(self._files_by_run().items())
        return next((name for name, files in newest_first if Promotion.FILE in files), None)

    def find_last_settled_run(self) -> RunRecord | None:
        """Return the newest run that needs no repetition."""
        for name, files in reversed(self._files_by_run().items()):
            if Verdict.FILE in files and (run := self._read_run(name, files)).is_settled:
                return run
        return None

    def read_document_digests(self, run: str) -> dict[str, str]:
        """Return the sha256 of each document of ``run``, by its name."""
        with self._translate_errors():
            return _DIGESTS.validate_json(self._store.read(f"runs/{run}/{_DOCUMENTS_FILE}"))

    def write(self, run: str, record: Record, document_digests: dict[str, str] | None = None) -> None:
        """Add ``record`` to ``run``, and the sha256 of each document when given."""
        with self._translate_errors():
            if document_digests is not None:
                body = json.dumps(document_digests, sort_keys=True).encode()
                self._store.write(f"runs/{run}/{_DOCUMENTS_FILE}", body)
            self._store.write(f"runs/{run}/{record.FILE}", record.model_dump_json(indent=2).encode() + b"\n")

    def store_artifact(self, run: str, kind: str, directory: Path) -> None:
        """Copy the sealed artifact in ``directory`` to ``run``; its manifest goes last."""
        manifest = json.loads((directory / MANIFEST).read_bytes())
        with self._translate_errors():
            for name, file in sorted(manifest["files"].items()):
                chunks = partial(read_file_chunks, directory / name)
                target = f"runs/{run}/{kind}/{name}"
                self._store.write_chunks(target, chunks, size=file["bytes"], sha256=file["sha256"])
            self._store.write(f"runs/{run}/{kind}/{MANIFEST}", (directory / MANIFEST).read_bytes())
        _log.info("kept %s at %s/runs/%s/%s", kind, self.uri, run, kind)

    def fetch_artifact(self, run: str, kind: str, target: Path) -> None:
        """Copy the artifact ``kind`` of ``run`` to ``target`` and verify it.

        Raises ActionNeeded when it is incomplete or changed.
        """
        where = f"{self.uri}/runs/{run}/{kind}"
        try:
            with self._translate_errors():
                for name in self._store.list_names(f"runs/{run}/{kind}/"):
                    self._copy(name, target / name.removeprefix(f"runs/{run}/{kind}/"))
            verify(target, kind, sealed=True)
        except (InputError, ActionNeeded) as error:
            raise ActionNeeded(
                f"{where} is not whole ({error}): put it back, or remove runs/{run}/{Promotion.FILE} to forget that "
                f"model"
            ) from None
        _log.info("fetched %s", where)

    def delete_artifacts_before(self, run: str) -> None:
        """Delete checkpoints and test sets of runs before ``run``; their records stay."""
        older = {name: files for name, files in self._files_by_run().items() if name < run}
        with self._translate_errors():
            for name, files in older.items():
                self._store.delete([f"runs/{name}/{file}" for file in sorted(files) if "/" in file])

    def _copy(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for chunk in self._store.read_chunks(name):
                out.write(chunk)

    def _read_run(self, name: str, files: Collection[str]) -> RunRecord:
        return RunRecord(
            name,
            corpus=self._read_record(name, CorpusChange, files),
            verdict=self._read_record(name, Verdict, files),
            promotion=self._read_record(name, Promotion, files),
        )

    def _read_record(self, run: str, kind: type[RecordType], files: Collection[str]) -> RecordType | None:
        if kind.FILE not in files:
            return None
        name = f"runs/{run}/{kind.FILE}"
        with self._translate_errors():
            body = self._store.read(name)
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            raise InputError(f"{self.uri}/{name} cannot be read ({error.errors()[0]['msg']}): remove it") from None

    def _files_by_run(self) -> dict[str, set[str]]:
        """Return the names of the files of each run, oldest run first."""
        files: dict[str, set[str]] = defaultdict(set)
        with self._translate_errors():
            names = self._store.list_names("runs/")
        for path in names:
            run, _, file = path.removeprefix("runs/").partition("/")
            files[run].add(file)
        return dict(sorted(files.items()))

    def _translate_errors(self) -> contextlib.AbstractContextManager[None]:
        return translate_errors(f"history_uri = {self.uri}")


def new_run_name() -> str:
    """Return a name that no other run has; names sort by time, to the microsecond."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{secrets.token_hex(1)}"
