"""Reads records from JSON Lines, JSON and Parquet files; each comes with where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import InputError

# A record and where it stands: "file:line", "file[number]".
Found = tuple[str, dict[str, Any]]
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_file(path: Path) -> Iterator[Found]:
    """Every record of ``path``.

    A ``.json`` file holds one record or a list of them. Raises InputError naming file and place of what is none.
    """
    read = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}[path.suffix]
    for where, record in read(path):
        if not isinstance(record, dict):
            raise InputError(f"{where} is {type(record).__name__}: expected a record {{...}}")
        yield where, record


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        # Lines of bytes: a text may hold U+2028, which ends no line of JSON Lines.
        for number, line in enumerate(file, 1):
            text = _decoded(line, path)
            if text.strip():
                yield f"{path.name}:{number}", _parsed(text, f"{path.name}:{number}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    content = _parsed(_decoded(path.read_bytes(), path), path.name)
    if not isinstance(content, list):
        yield path.name, content
        return
    for number, record in enumerate(content):
        yield f"{path.name}[{number}]", record


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
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


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8: convert it") from None


def _parsed(text: str, where: str) -> Any:
    """What JSON says; NaN and infinity, which Python writes and JSON does not know, are null."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        return _whole_characters(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): write it again") from None


def _whole_characters(value: Any) -> Any:
    """``value`` with U+FFFD for every half of a character, which could not be written again."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(one) for one in value]
    if isinstance(value, dict):
        return {_whole_characters(name): _whole_characters(one) for name, one in value.items()}
    return value
