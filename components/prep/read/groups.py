"""Groups of documents from elsewhere, such as a deduplication: what is in one group stays on one side of the split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from components.core.errors import InputError
from components.prep.read.records import Records

# Kinds of duplicates that the recipe's own files distinguish; here all of them keep documents together.
_KINDS = ("exact", "fuzzy", "semantic")
_LISTS = ("groups", "clusters")


def is_groups(record: dict[str, Any]) -> bool:
    """Whether this is a list of groups: ``groups`` or ``clusters``, by themselves or under the kind of duplicate."""
    return bool(record) and record.keys() <= {*_KINDS, *_LISTS}


def add(records: Records, record: dict[str, Any], where: str) -> None:
    """Keep the documents of each group together; ``records`` holds all documents already.

    A name stands for the document of that name, else without its extension, else of that file name in any folder.
    Documents that are not there are no error: a deduplication may have seen more. Raises InputError for a name that
    fits several documents and for what is no list of names.
    """
    known = _known(records)
    for number, names in enumerate(_groups(record, where)):
        found = set()
        for name in names:
            fitting = _fitting(name, known)
            if len(fitting) > 1:
                raise InputError(
                    f"{where}: {name!r} fits several documents, {', '.join(sorted(fitting)[:3])} among them: give the "
                    f"whole name"
                )
            found |= fitting
        if len(found) > 1:
            records.groups[f"{where} group {number}"] = found


def _groups(record: Mapping[str, Any], where: str) -> Iterator[list[str]]:
    for name in (*_LISTS, *_KINDS):
        value = record.get(name)
        if value is None:
            continue
        if name in _KINDS and isinstance(value, dict):
            yield from _groups({key: value[key] for key in _LISTS if key in value}, f"{where}: {name}")
            continue
        # Some name their clusters.
        listed = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(listed, list):
            raise InputError(f"{where}: expected a list of groups under '{name}', found {value!r:.80}")
        for group in listed:
            if not isinstance(group, list) or not all(isinstance(one, str) for one in group):
                raise InputError(f"{where}: a group is a list of names of documents, found {group!r:.80} in '{name}'")
            yield group


def _known(records: Records) -> list[dict[str, set[str]]]:
    """Documents by their name, by it without extension, by that without folders."""
    documents = {name for holders in records.passages.values() for name in holders}
    documents |= {example.document for example in records.examples}
    tables: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(3)]
    for document in documents:
        for table, name in zip(tables, _names(document), strict=True):
            table[name].add(document)
    return tables


def _fitting(name: str, known: list[dict[str, set[str]]]) -> set[str]:
    for table, form in zip(known, _names(name), strict=True):
        if form in table:
            return table[form]
    return set()


def _names(document: str) -> tuple[str, str, str]:
    path = PurePosixPath(document)
    return document, str(path.with_suffix("")) if path.name else document, path.stem
