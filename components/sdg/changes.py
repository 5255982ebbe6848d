"""What is new in a corpus since the last run that was carried through, and whether there is anything to do."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from components import __version__
from components.core.history import History, Started, ThisRun, new_run_name
from components.sdg.component import SdgConfig
from components.sdg.read.corpus import Corpus

_log = logging.getLogger(__name__)


def look(read: Corpus, config: SdgConfig) -> tuple[ThisRun, dict[str, str]]:
    """This run among the earlier ones at ``history_uri``, and sha256 by document.

    Without a history everything is new. ``started.unchanged_since`` is set when the last run that was carried through
    read the same documents with the same settings of sdg and the same release.
    """
    documents = {one.source_id: hashlib.sha256(one.text.encode()).hexdigest() for one in read.documents}
    digests = {"documents_digest": _digest(documents), "settings_digest": _settings_digest(config)}
    if config.history_uri is None:
        started = Started(documents=len(documents), new=len(documents), changed=0, removed=0, **digests)
        return ThisRun("", "", started), documents
    history = History(config.history_uri)
    last = history.last_settled()
    before = history.documents(last.name) if last else {}
    same = last is not None and last.started is not None and _same(last.started, digests)
    started = Started(
        documents=len(documents),
        new=len(documents.keys() - before.keys()),
        changed=sum(documents[name] != before[name] for name in documents.keys() & before.keys()),
        removed=len(before.keys() - documents.keys()),
        unchanged_since=last.name if last and same and config.skip_unchanged else None,
        compared_with=last.name if last else None,
        **digests,
    )
    return ThisRun(config.history_uri, new_run_name(), started, history.champion()), documents


def note(run: ThisRun, documents: dict[str, str], artifact: Path | None) -> list[str]:
    """Write the artifact ``past_runs``, and what was found into the history; return its last runs, newest first."""
    if artifact is not None:
        run.write(artifact)
    if not run.uri:
        return []
    history = run.history
    history.write(run.run, run.started, documents)
    _log.info("run %s", history.run(run.run).summary())
    return history.lines()


def _same(started: Started, digests: Mapping[str, str]) -> bool:
    return (started.documents_digest, started.settings_digest) == tuple(digests.values())


def _settings_digest(config: SdgConfig) -> str:
    return _digest({"release": __version__, "settings": config.dump_what_affects_result()})


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
