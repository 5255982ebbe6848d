"""Recurring runs: what earlier runs on the same corpus read and made, and which model is served now.

A history is a directory, or a prefix of a bucket, with a folder for each run:

    runs/RUN/started.json      sdg: how many documents there are, what is new, whether the run ended here
    runs/RUN/documents.json    sdg: sha256 of each document
    runs/RUN/judged.json       eval: figures and the gate's verdict
    runs/RUN/checkpoint/       eval, when the gate passed: the model
    runs/RUN/eval_data/        eval, when the gate passed: what it was judged by
    runs/RUN/served.json       deploy: where the model is served

Every file is written by one stage of one run and never changed by another, so runs at the same time lose nothing. The
champion is the model of the newest run with ``served.json``: a run that fails after training promotes nothing. Names
of runs begin with the time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.artifacts import MANIFEST, verify
from components.core.errors import ActionNeeded, InputError

RUN_FILE = "run.json"
SHOWN_RUNS = 20
_DOCUMENTS = "documents.json"
_log = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Started(_Record):
    """What sdg found. ``documents_digest`` and ``settings_digest`` say whether another run's work is the same.

    ``unchanged_since`` names the run that did this run's work already: then this one ended here. ``paid_answers`` are
    those of an LLM that this run paid for, ``reused_documents`` came from earlier runs whole; None without an LLM.
    """

    documents: int
    new: int
    changed: int
    removed: int
    documents_digest: str
    settings_digest: str
    unchanged_since: str | None = None
    compared_with: str | None = None
    paid_answers: int | None = None
    reused_documents: int | None = None


class Judged(_Record):
    """The gate's verdict; ``scores`` are ``metric`` by system: base, finetuned, and champion where there is one."""

    passed: bool
    reasons: tuple[str, ...]
    metric: str
    queries: int
    scores: dict[str, float]


class Served(_Record):
    """What deploy did. With the target gitops nobody has seen the model answer yet."""

    target: str
    endpoint: str
    digest: str


@dataclass(frozen=True)
class RunRecord:
    """What the history holds of a run."""

    name: str
    started: Started | None = None
    judged: Judged | None = None
    served: Served | None = None

    @property
    def settled(self) -> bool:
        """Whether the same documents and settings need no other run: the model is served, or was refused."""
        return self.served is not None or (self.judged is not None and not self.judged.passed)

    def summary(self) -> str:
        """The run in one line."""
        parts = [_documents(self.started)] if self.started else []
        if self.started and self.started.unchanged_since:
            parts.append(f"unchanged since {self.started.unchanged_since}: ended early, nothing was trained")
        elif self.judged is None:
            parts.append("not finished")
        if self.judged:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in self.judged.scores.items())
            parts.append(f"{self.judged.metric} {scores} on {self.judged.queries} queries")
            if self.served:
                parts.append(f"promoted ({self.served.target}): {self.served.endpoint or self.served.digest[:12]}")
            elif self.judged.passed:
                parts.append("gate passed, not deployed")
            else:
                parts.append("not promoted: " + " ".join(self.judged.reasons))
        return f"{self.name}: {'; '.join(parts)}"


def _documents(started: Started) -> str:
    text = f"{started.documents} documents"
    if started.compared_with:
        text += f" ({started.new} new, {started.changed} changed, {started.removed} removed)"
    if started.paid_answers is not None:
        text += f", {started.paid_answers} answers paid, {started.reused_documents or 0} documents reused"
    return text


class History:
    """The runs at ``uri``: a directory, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    Raises InputError for another address, and what ``to_stage_error`` says of a place that cannot be read or written.
    """

    def __init__(self, uri: str) -> None:
        # Runs without a history need no obstore.
        from components.core.store import open_store  # noqa: PLC0415

        self.uri = uri
        self._store = open_store(uri, setting="history_uri")

    def runs(self, *, since: str = "", newest: int | None = None) -> list[RunRecord]:
        """Runs, oldest first: those whose names are not before ``since``, of them the ``newest`` so many."""
        files = self._files()
        names = [name for name in files if name >= since]
        return [self._record(name, files[name]) for name in (names if newest is None else names[-newest:])]

    def lines(self) -> list[str]:
        """The last runs, newest first, a line for each, as reports show them."""
        return [run.summary() for run in reversed(self.runs(newest=SHOWN_RUNS))]

    def run(self, name: str) -> RunRecord:
        """What there is of the run ``name``."""
        return self._record(name, self._files().get(name, set()))

    def _record(self, name: str, files: set[str]) -> RunRecord:
        kinds: dict[str, type[_Record]] = {"started": Started, "judged": Judged, "served": Served}
        found = {kind: self._read(name, kind, model) for kind, model in kinds.items() if f"{kind}.json" in files}
        return RunRecord(name, **found)

    def champion(self) -> str | None:
        """The run whose model is served."""
        return next((name for name, files in reversed(self._files().items()) if "served.json" in files), None)

    def last_settled(self) -> RunRecord | None:
        """The newest run that was carried through."""
        for name, files in reversed(self._files().items()):
            if "judged.json" in files and (found := self._record(name, files)).settled:
                return found
        return None

    def documents(self, run: str) -> dict[str, str]:
        """sha256 by document of ``run``."""
        with self._asking():
            return json.loads(self._store.read(f"runs/{run}/{_DOCUMENTS}"))

    def write(self, run: str, record: _Record, documents: dict[str, str] | None = None) -> None:
        """Add ``record`` to ``run``."""
        with self._asking():
            if documents is not None:
                self._store.write(f"runs/{run}/{_DOCUMENTS}", json.dumps(documents, sort_keys=True).encode())
            name = type(record).__name__.lower()
            self._store.write(f"runs/{run}/{name}.json", record.model_dump_json(indent=2).encode() + b"\n")

    def keep(self, run: str, kind: str, directory: Path) -> None:
        """Copy the artifact ``directory`` to ``run``, its manifest last."""
        from components.core.store import read_file_chunks  # noqa: PLC0415

        manifest = json.loads((directory / MANIFEST).read_bytes())
        with self._asking():
            for name, file in sorted(manifest["files"].items()):
                chunks = partial(read_file_chunks, directory / name)
                place = f"runs/{run}/{kind}/{name}"
                self._store.write_chunks(place, chunks, size=file["bytes"], sha256=file["sha256"])
            self._store.write(f"runs/{run}/{kind}/{MANIFEST}", (directory / MANIFEST).read_bytes())
        _log.info("kept %s at %s/runs/%s/%s", kind, self.uri, run, kind)

    def fetch(self, run: str, kind: str, target: Path) -> None:
        """Copy the artifact ``kind`` of ``run`` to ``target`` and check it."""
        where = f"{self.uri}/runs/{run}/{kind}"
        try:
            with self._asking():
                for name in self._store.list_names(f"runs/{run}/{kind}/"):
                    self._copy(name, target / name.removeprefix(f"runs/{run}/{kind}/"))
            verify(target, kind, sealed=True)
        except (InputError, ActionNeeded) as error:
            raise ActionNeeded(
                f"{where} is not whole ({error}): put it back, or remove runs/{run}/served.json to forget that model"
            ) from None
        _log.info("fetched %s", where)

    def forget_models_before(self, run: str) -> None:
        """Remove checkpoints and test sets of runs before ``run``; their records stay."""
        old = {name: files for name, files in self._files().items() if name < run}
        with self._asking():
            for name, files in old.items():
                self._store.delete([f"runs/{name}/{file}" for file in sorted(files) if "/" in file])

    def _copy(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            for chunk in self._store.read_chunks(name):
                out.write(chunk)

    def _read(self, run: str, kind: str, model: type[_Record]) -> Any:
        name = f"runs/{run}/{kind}.json"
        with self._asking():
            body = self._store.read(name)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise InputError(f"{self.uri}/{name} cannot be read ({error.errors()[0]['msg']}): remove it") from None

    def _files(self) -> dict[str, set[str]]:
        """Names of files by run, oldest run first."""
        found: dict[str, set[str]] = defaultdict(set)
        with self._asking():
            names = self._store.list_names("runs/")
        for path in names:
            run, _, file = path.removeprefix("runs/").partition("/")
            found[run].add(file)
        return dict(sorted(found.items()))

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        from components.core.store.errors import translate_errors  # noqa: PLC0415

        return translate_errors(f"history_uri = {self.uri}")


def new_run_name() -> str:
    """Sorts by time, to the microsecond; no two runs have the same."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{secrets.token_hex(1)}"


@dataclass(frozen=True)
class ThisRun:
    """The artifact ``past_runs``: where this run stands among others; ``champion`` is the run whose model is served."""

    uri: str
    run: str
    started: Started
    champion: str | None = None

    def write(self, directory: Path) -> None:
        """Write ``run.json``."""
        directory.mkdir(parents=True, exist_ok=True)
        content = {"uri": self.uri, "run": self.run, "champion": self.champion, "started": self.started.model_dump()}
        (directory / RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @property
    def history(self) -> History:
        return History(self.uri)


def this_run(directory: Path | None) -> ThisRun | None:
    """What ``ThisRun.write`` wrote; None where there is none, or the run keeps no history."""
    if directory is None:
        return None
    try:
        content = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        found = ThisRun(content["uri"], content["run"], Started(**content["started"]), content["champion"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory} is no past_runs ({error!r}): give the one that sdg made") from None
    return found if found.uri else None


@contextlib.contextmanager
def given_or_champions(given: Path | None, kind: str, past_runs: Path | None) -> Iterator[Path | None]:
    """``given`` when there is one, else the champion's artifact ``kind``, else None."""
    run = this_run(past_runs)
    if given is not None or run is None or run.champion is None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / kind
        run.history.fetch(run.champion, kind, target)
        yield target
