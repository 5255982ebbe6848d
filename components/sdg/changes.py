"""Compares the corpus with the last run that was carried through: what is new, and is there anything to do."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from components import __version__
from components.core.history import CorpusChange, History, RunContext, RunRecord, new_run_name
from components.sdg.component import SdgConfig
from components.sdg.read.corpus import Corpus

_log = logging.getLogger(__name__)


def compare_with_history(corpus: Corpus, config: SdgConfig) -> tuple[RunContext, dict[str, str]]:
    """Compare the corpus and the settings with those of earlier runs at ``history_uri``.

    Args:
        corpus: The documents that this run has read.
        config: All settings of sdg.

    Returns:
        Where this run stands among the earlier ones, and the sha256 of each document by its source_id. Without a
        history everything is new. ``corpus.unchanged_since`` is set when the last run that was carried through read
        the same documents with the same settings of sdg and the same release.
    """
    documents = {
        document.source_id: hashlib.sha256(document.text.encode()).hexdigest() for document in corpus.documents
    }
    documents_digest, settings_digest = _hash_json(documents), _hash_settings(config)
    if config.history_uri is None:
        change = CorpusChange(
            documents=len(documents),
            new=len(documents),
            changed=0,
            removed=0,
            documents_digest=documents_digest,
            settings_digest=settings_digest,
        )
        return RunContext("", "", change), documents
    history = History(config.history_uri)
    last = history.find_last_settled_run()
    before = history.read_document_digests(last.name) if last else {}
    is_unchanged = config.skip_unchanged and _has_digests(last, documents_digest, settings_digest)
    change = CorpusChange(
        documents=len(documents),
        new=len(documents.keys() - before.keys()),
        changed=sum(documents[name] != before[name] for name in documents.keys() & before.keys()),
        removed=len(before.keys() - documents.keys()),
        unchanged_since=last.name if last and is_unchanged else None,
        compared_with=last.name if last else None,
        documents_digest=documents_digest,
        settings_digest=settings_digest,
    )
    return RunContext(config.history_uri, new_run_name(), change, history.find_champion()), documents


def record_run(run: RunContext, documents: dict[str, str], artifact: Path) -> list[str]:
    """Write the artifact ``past_runs``, and what the run read into the history.

    Returns:
        The last runs of the history, one line each, newest first; none without a history.
    """
    run.write(artifact)
    if not run.history_uri:
        return []
    history = run.history
    history.write(run.name, run.corpus, documents)
    _log.info("run %s", history.read_run(run.name).summary())
    return history.summarize_last_runs()


def _has_digests(run: RunRecord | None, documents_digest: str, settings_digest: str) -> bool:
    change = run.corpus if run else None
    return change is not None and (change.documents_digest, change.settings_digest) == (
        documents_digest,
        settings_digest,
    )


def _hash_settings(config: SdgConfig) -> str:
    return _hash_json({"release": __version__, "settings": config.dump_what_affects_result()})


def _hash_json(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
