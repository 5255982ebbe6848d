"""Reads records from JSON Lines, JSON and Parquet files, each with its place in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import InputError

# Where a record stands, "file:line" or "file[number]", and the record.
LocatedRecord = tuple[str, dict[str, Any]]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_file(path: Path) -> Iterator[LocatedRecord]:
    """Yield every record of ``path``.

    A ``.json`` file holds one record or a list of them. Raises InputError, with file and place, for anything else.
    """
    read_records = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet}[path.suffix]
    for where, record in read_records(path):
        if not isinstance(record, dict):
            raise InputError(f"{where} is {type(record).__name__}: expected a record {{...}}")
        yield where, record


def _read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        # Lines of bytes: a text may hold U+2028, which ends no line of JSON Lines.
        for number, line in enumerate(file, 1):
            text = _decode(line, path)
            if text.strip():
                yield f"{path.name}:{number}", _parse_json(text, f"{path.name}:{number}")


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    content = _parse_json(_decode(path.read_bytes(), path), path.name)
    if not isinstance(content, list):
        yield path.name, content
        return
    for number, record in enumerate(content):
        yield f"{path.name}[{number}]", record


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            for record in batch.to_pylist():
                # A table has every column in every row: what is null or NaN here is absent elsewhere.
                present = {name: value for name, value in record.items() if value is not None and value == value}
                yield f"{path.name}[{number}]", present
                number += 1
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path.name} cannot be read as Parquet ({why}): write it again") from None


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8: convert it") from None


def _parse_json(text: str, where: str) -> Any:
    """Parse JSON; NaN and infinity, which Python writes and JSON does not know, become null."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        return _replace_lone_surrogates(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): write it again") from None


def _replace_lone_surrogates(value: Any) -> Any:
    """Return ``value`` with U+FFFD for every half of a character, which could not be written again."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_lone_surrogates(name): _replace_lone_surrogates(item) for name, item in value.items()}
    return value
