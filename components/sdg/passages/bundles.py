"""Which documents are asked about together, and the record that a document or a bundle of them becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from components.core.errors import InputError
from components.sdg.component import SdgConfig
from components.sdg.passages.chunking import chunk
from components.sdg.read.corpus import Document

_BOUNDARY = "\n\n=== Document Boundary ===\n\n"
_ID_CHARACTERS = 16


def bundle(documents: Sequence[Document], root: Path, config: SdgConfig) -> list[list[Document]]:
    """Each document alone; with ``multi_doc`` the bundles of the manifest, then the rest ``bundle_size`` at a time.

    Of several sources each is bundled for itself, and the manifest, which may mix them, lies in the first: ``root``.
    Raises InputError for a manifest that cannot be read, names unknown documents, or makes too large bundles.
    """
    if not config.multi_doc:
        return [[document] for document in documents]
    by_name = {document.source_id: document for document in documents}
    listed = _manifest(root, config.multi_doc_manifest) if config.multi_doc_manifest else []
    where = f"multi_doc_manifest {config.multi_doc_manifest}"
    bundles = []
    for names in listed:
        if len(names) > config.max_docs_per_bundle:
            raise InputError(f"{where}: {names[0]} and others are {len(names)} documents: raise max_docs_per_bundle")
        missing = [name for name in names if name not in by_name]
        if missing:
            raise InputError(f"{where}: {missing[0]} is no usable document of the corpus, or stands there twice")
        bundles.append([by_name.pop(name) for name in names])
    for _, rest in groupby(by_name.values(), key=lambda document: document.source):
        of_one = list(rest)
        bundles += [of_one[at : at + config.bundle_size] for at in range(0, len(of_one), config.bundle_size)]
    return bundles


def to_record(documents: Sequence[Document], config: SdgConfig, fits: Callable[[str], bool] | None) -> dict[str, Any]:
    """The recipe's record of a document or a bundle, without questions yet; numbers of passages run across it."""
    together = len(documents) > 1
    chunks: list[dict[str, Any]] = []
    for document in documents:
        found = chunk(
            document.text,
            sentences=config.sentences_per_chunk,
            max_words=config.chunk_max_words,
            overlap=config.chunk_overlap_sentences,
            fits=fits,
        )
        origin = {"doc_id": document.source_id, "doc_path": document.source_id} if together else {}
        chunks += [one | {"chunk_id": len(chunks) + number} | origin for number, one in enumerate(found, 1)]
    names = [document.source_id for document in documents]
    digest = hashlib.md5("||".join(sorted(names)).encode(), usedforsecurity=False).hexdigest()[:_ID_CHARACTERS]
    return {
        "file_name": names,
        "source_id": digest if together else names[0],
        **({"source": documents[0].source} if documents[0].source else {}),
        "text": _BOUNDARY.join(document.text for document in documents),
        "chunks": chunks,
        "bundle_id": digest if together else "",
        "bundle_members": names,
        "is_multi_doc": together,
        "document_artifacts": {},
        "qa_generation": {"pairs": []},
        "deduplicated_qa_pairs": [],
        "qa_evaluations": None,
    }


def _manifest(root: Path, name: str) -> list[list[str]]:
    """The bundles that the file lists. Raises InputError when it lies outside the corpus or is none."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink() or not path.is_file():
        raise InputError(f"multi_doc_manifest {name}: there is no such file in the corpus")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"multi_doc_manifest {name} cannot be read: {' '.join(str(error).split())[:200]}") from None
    bundles = content.get("bundles") if isinstance(content, dict) else content
    if isinstance(bundles, list):
        bundles = [one.get("docs") if isinstance(one, dict) else one for one in bundles]
        if all(isinstance(one, list) and one and all(isinstance(n, str) for n in one) for one in bundles):
            return bundles
    raise InputError(f"multi_doc_manifest {name}: expected lists of paths, as in [[a.txt, b.txt], [c.txt, d.txt]]")
