"""Groups documents into bundles, and makes the record that a document or a bundle of documents becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import yaml

from components.core.errors import InputError
from components.sdg.passages.chunking import chunk_text
from components.sdg.read.corpus import Document
from components.sdg.records import Chunk, QaRecord
from components.sdg.settings.chunking_settings import BundleSettings, ChunkingSettings

_BOUNDARY = "\n\n=== Document Boundary ===\n\n"
_ID_CHARACTERS = 16


def group_documents(documents: Sequence[Document], root: Path, settings: BundleSettings) -> list[list[Document]]:
    """Return the documents that are asked about together.

    Without ``multi_doc`` each document is alone; with it there are the bundles of the manifest, then the rest,
    ``bundle_size`` at a time, each source for itself.

    Args:
        documents: All documents.
        root: Directory of the first source, in which the manifest lies; it may mix sources.
        settings: Which documents are bundled.

    Raises:
        InputError: The manifest cannot be read, names unknown documents, or makes bundles that are too large.
    """
    if not settings.multi_doc:
        return [[document] for document in documents]
    by_name = {document.source_id: document for document in documents}
    manifest = _read_manifest(root, settings.multi_doc_manifest) if settings.multi_doc_manifest else []
    where = f"multi_doc_manifest {settings.multi_doc_manifest}"
    bundles = []
    for names in manifest:
        if len(names) > settings.max_docs_per_bundle:
            raise InputError(f"{where}: {names[0]} and others are {len(names)} documents: raise max_docs_per_bundle")
        missing = [name for name in names if name not in by_name]
        if missing:
            raise InputError(f"{where}: {missing[0]} is no usable document of the corpus, or stands there twice")
        bundles.append([by_name.pop(name) for name in names])
    size = settings.bundle_size
    for _, group in groupby(by_name.values(), key=lambda document: document.source):
        rest = list(group)
        bundles += [rest[start : start + size] for start in range(0, len(rest), size)]
    return bundles


def build_record(
    documents: Sequence[Document], settings: ChunkingSettings, fits: Callable[[str], bool] | None
) -> QaRecord:
    """Return the record, without questions yet, of a document or of a bundle of several.

    Args:
        documents: One document, or those of a bundle; passages are numbered across all of them.
        settings: How long a passage is.
        fits: Must hold for every passage; None when only its words count.
    """
    is_bundle = len(documents) > 1
    chunks: list[Chunk] = []
    for document in documents:
        passages = chunk_text(
            document.text,
            sentences=settings.sentences_per_chunk,
            max_words=settings.chunk_max_words,
            overlap=settings.chunk_overlap_sentences,
            fits=fits,
        )
        if is_bundle:
            name, before = document.source_id, len(chunks)
            passages = [replace(each, chunk_id=before + each.chunk_id, doc_id=name, doc_path=name) for each in passages]
        chunks += passages
    names = [document.source_id for document in documents]
    digest = hashlib.md5("||".join(sorted(names)).encode(), usedforsecurity=False).hexdigest()[:_ID_CHARACTERS]
    return QaRecord(
        source_id=digest if is_bundle else names[0],
        file_name=names,
        text=_BOUNDARY.join(document.text for document in documents),
        chunks=chunks,
        source=documents[0].source,
        bundle_id=digest if is_bundle else "",
        bundle_members=names,
        is_multi_doc=is_bundle,
    )


def _read_manifest(root: Path, name: str) -> list[list[str]]:
    """Return the bundles that the file lists. Raises InputError when it lies outside the corpus or is none."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink() or not path.is_file():
        raise InputError(f"multi_doc_manifest {name}: there is no such file in the corpus")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"multi_doc_manifest {name} cannot be read: {' '.join(str(error).split())[:200]}") from None
    bundles = content.get("bundles") if isinstance(content, dict) else content
    if isinstance(bundles, list):
        bundles = [entry.get("docs") if isinstance(entry, dict) else entry for entry in bundles]
        if all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in bundles):
            return bundles
    raise InputError(f"multi_doc_manifest {name}: expected lists of paths, as in [[a.txt, b.txt], [c.txt, d.txt]]")
