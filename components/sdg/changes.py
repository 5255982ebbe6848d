"""What is new in a corpus since the last run that was carried through, and whether there is anything to do."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from components import __version__
from components.core.history import CorpusChange, History, RunContext, new_run_name
from components.sdg.component import SdgConfig
from components.sdg.read.corpus import Corpus

_log = logging.getLogger(__name__)


def look(read: Corpus, config: SdgConfig) -> tuple[RunContext, dict[str, str]]:
    """This run among the earlier ones at ``history_uri``, and sha256 by document.

    Without a history everything is new. ``corpus.unchanged_since`` is set when the last run that was carried through
    read the same documents with the same settings of sdg and the same release.
    """
    documents = {one.source_id: hashlib.sha256(one.text.encode()).hexdigest() for one in read.documents}
    digests = {"documents_digest": _digest(documents), "settings_digest": _settings_digest(config)}
    if config.history_uri is None:
        change = CorpusChange(documents=len(documents), new=len(documents), changed=0, removed=0, **digests)
        return RunContext("", "", change), documents
    history = History(config.history_uri)
    last = history.find_last_settled_run()
    before = history.read_document_digests(last.name) if last else {}
    same = last is not None and last.corpus is not None and _same(last.corpus, digests)
    change = CorpusChange(
        documents=len(documents),
        new=len(documents.keys() - before.keys()),
        changed=sum(documents[name] != before[name] for name in documents.keys() & before.keys()),
        removed=len(before.keys() - documents.keys()),
        unchanged_since=last.name if last and same and config.skip_unchanged else None,
        compared_with=last.name if last else None,
        **digests,
    )
    return RunContext(config.history_uri, new_run_name(), change, history.find_champion()), documents


def note(run: RunContext, documents: dict[str, str], artifact: Path | None) -> list[str]:
    """Write the artifact ``past_runs``, and what was found into the history; return its last runs, newest first."""
    if artifact is not None:
        run.write(artifact)
    if not run.history_uri:
        return []
    history = run.history
    history.write(run.name, run.corpus, documents)
    _log.info("run %s", history.read_run(run.name).summary())
    return history.summarize_last_runs()


def _same(change: CorpusChange, digests: Mapping[str, str]) -> bool:
    return (change.documents_digest, change.settings_digest) == tuple(digests.values())


def _settings_digest(config: SdgConfig) -> str:
    return _digest({"release": __version__, "settings": config.dump_what_affects_result()})


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
