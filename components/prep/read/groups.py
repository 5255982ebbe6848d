"""Groups of documents from elsewhere, such as a deduplication: a group stays on one side of the split."""

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
    """Return whether this is a list of groups: ``groups`` or ``clusters``, alone or under the kind of duplicate."""
    return bool(record) and record.keys() <= {*_KINDS, *_LISTS}


def add(records: Records, record: dict[str, Any], where: str) -> None:
    """Keep the documents of each group together; ``records`` holds all documents already.

    A name stands for the document of that name, else without its extension, else of that file name in any folder.
    Unknown documents are no error: a deduplication may have seen more. Raises InputError for a name that fits several
    documents and for anything but a list of names.
    """
    indexes = _index_documents(records)
    for number, names in enumerate(_iterate_groups(record, where)):
        group = set()
        for name in names:
            documents = _match_documents(name, indexes)
            if len(documents) > 1:
                raise InputError(
                    f"{where}: {name!r} fits several documents, {', '.join(sorted(documents)[:3])} among them: give "
                    f"the whole name"
                )
            group |= documents
        if len(group) > 1:
            records.groups[f"{where} group {number}"] = group


def _iterate_groups(record: Mapping[str, Any], where: str) -> Iterator[list[str]]:
    for name in (*_LISTS, *_KINDS):
        value = record.get(name)
        if value is None:
            continue
        if name in _KINDS and isinstance(value, dict):
            yield from _iterate_groups({key: value[key] for key in _LISTS if key in value}, f"{where}: {name}")
            continue
        # Some name their clusters.
        groups = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(groups, list):
            raise InputError(f"{where}: expected a list of groups under '{name}', found {value!r:.80}")
        for group in groups:
            if not isinstance(group, list) or not all(isinstance(name, str) for name in group):
                raise InputError(f"{where}: a group is a list of names of documents, found {group!r:.80} in '{name}'")
            yield group


def _index_documents(records: Records) -> list[dict[str, set[str]]]:
    """Return the documents by each form of their names."""
    documents = {name for holders in records.passages.values() for name in holders}
    documents |= {example.document for example in records.examples}
    tables: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(3)]
    for document in documents:
        for table, name in zip(tables, _name_forms(document), strict=True):
            table[name].add(document)
    return tables


def _match_documents(name: str, indexes: list[dict[str, set[str]]]) -> set[str]:
    for table, form in zip(indexes, _name_forms(name), strict=True):
        if form in table:
            return table[form]
    return set()


def _name_forms(document: str) -> tuple[str, str, str]:
    """Return the name, the name without its extension, and the latter without folders."""
    path = PurePosixPath(document)
    return document, str(path.with_suffix("")) if path.name else document, path.stem
