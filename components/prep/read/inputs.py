"""Reads every kind of input that prep takes, also mixed in one directory."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path

from components.core.artifacts import MANIFEST
from components.core.errors import InputError
from components.core.retrieval.beir_data import CORPUS_FILE, QUERIES_FILE
from components.prep.component import RecordSettings
from components.prep.read import beir_folder, generated, groups, labelled
from components.prep.read.files import SUFFIXES, LocatedRecord, read_file
from components.prep.read.records import Records

GENERATED = "qa_pairs.jsonl"
HANDOFF = "generation_result.json"
_log = logging.getLogger(__name__)


def read_records(directory: Path, settings: RecordSettings) -> Records:
    """Read everything in ``directory``: files of sdg's, of the recipe's and of labelled records, and BEIR folders.

    Raises InputError, with file and line, for anything that cannot be read, and when no question is left.
    """
    records = Records()
    folders = [folder for folder in (directory, *sorted(directory.iterdir())) if _is_beir(folder)]
    is_beir = directory in folders
    files = [] if is_beir else _list_files(directory)
    if not files and not folders:
        raise InputError(
            f"qa_pairs {directory} holds no {', '.join(SUFFIXES)} file and no BEIR folder: give {GENERATED}, labelled "
            f"records, or a folder with {CORPUS_FILE}, {QUERIES_FILE} and qrels/"
        )
    for folder in folders:
        labelled.add(records, beir_folder.read(folder), settings)
    _read_files(records, files, _read_handoff(directory), settings)
    if is_beir:
        _read_groups(records, directory)
    if not records.examples:
        raise InputError(_explain_nothing_left(directory, records, settings.quality_threshold))
    return records


def _read_files(records: Records, files: list[Path], named: str | None, settings: RecordSettings) -> None:
    """Add the files' records; of generated ones only those in the file ``named``, if given."""
    labelled_records: list[LocatedRecord] = []
    group_records: list[LocatedRecord] = []
    for path in files:
        left_out = 0
        for where, record in read_file(path):
            if labelled.is_automodel(record):
                labelled.add(records, labelled.read_automodel(path, record), settings)
            elif groups.is_groups(record):
                group_records.append((where, record))
            elif not generated.is_generated(record):
                labelled_records.append((where, {"source": path.stem, **record}))
            elif named is None or path.name == named:
                generated.add(records, record, where, settings)
            else:
                left_out += 1
        if left_out:
            _log.warning("%s: %d generated records left out: %s names %s", path.name, left_out, HANDOFF, named)
    labelled.add(records, labelled_records, settings)
    for where, record in group_records:
        groups.add(records, record, where)


def _read_groups(records: Records, folder: Path) -> None:
    """Add the groups of documents beside the files of a BEIR folder; warn of other files, which are not read."""
    for path in _list_files(folder):
        if path.name in (CORPUS_FILE, QUERIES_FILE):
            continue
        located = list(read_file(path)) if path.suffix == ".json" else []
        group_records = [(where, record) for where, record in located if groups.is_groups(record)]
        for where, record in group_records:
            groups.add(records, record, where)
        if not group_records:
            _log.warning("%s is left out: beside the files of a BEIR folder only groups are read", path.name)


def _is_beir(folder: Path) -> bool:
    return (folder / CORPUS_FILE).is_file() and (folder / QUERIES_FILE).is_file()


def _list_files(directory: Path) -> list[Path]:
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix in SUFFIXES and path.name not in (MANIFEST, HANDOFF)
    ]


def _read_handoff(directory: Path) -> str | None:
    """Return the file of generated pairs that ``generation_result.json`` names; earlier attempts may lie beside it."""
    path = directory / HANDOFF
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("output_path")
    except (ValueError, AttributeError):
        raise InputError(f"{HANDOFF} is no JSON record: run the generation again, or remove the file") from None
    if not isinstance(named, str):
        return None
    if not (directory / Path(named).name).is_file():
        raise InputError(f"{HANDOFF} names {named}, which is not there: copy the whole directory again")
    return Path(named).name


def _explain_nothing_left(directory: Path, records: Records, threshold: float) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in records.dropped.most_common()) or "no pairs in it"
    message = f"no question of {directory} is left ({reasons})"
    if not records.scores:
        return f"{message}: give records with questions and the passages that answer them"
    histogram = Counter(math.floor(score) for score in records.scores)
    scores = ", ".join(f"{count} of {score} to {score + 1}" for score, count in sorted(histogram.items()))
    best = math.floor(max(records.scores))
    return f"{message}; scores: {scores}: lower quality_threshold ({threshold:g}) to {best} or write better questions"
