"""Reads the text of a file: plain, HTML, PDF or DOCX. Broken and hostile files are left out, never a crash."""

from __future__ import annotations

import codecs
import io
import logging
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from components.core.errors import InputError
from components.sdg.settings.reading_settings import ReadingSettings

_HTML_DROPPED = ("script", "style", "noscript", "template", "svg", "head", "iframe", "object")
_HTML_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "br",
        "dd",
        "div",
        "dl",
        "dt",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "td",
        "th",
        "tr",
        "ul",
    ]
)
# A DOCX is a ZIP archive: one that unpacks to more than so many times the limit of a file is a bomb.
_UNPACKED_TIMES = 8
_BLANK_LINES = re.compile(r"\n\s*\n\s*")
# What no text holds: control characters, except tabs and line ends, and lone surrogates.
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


class Unreadable(Exception):
    """A file is left out; the message is the reason."""


def read_text(path: Path, suffix: str, settings: ReadingSettings) -> str:
    """Return the text of the file at ``path``, whose extension is ``suffix``.

    Raises:
        Unreadable: The file is left out; the message is the reason.
        InputError: The package that reads the format is not installed.
    """
    if path.stat().st_size > settings.max_file_mib * 2**20:
        raise Unreadable(f"larger than {settings.max_file_mib} MiB")
    try:
        # The file was looked at before: it must not be a link or a FIFO by now.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            content = file.read()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    if suffix not in _READERS:
        return _read_plain(content, settings)
    try:
        text = _READERS[suffix](content, settings)
    except ModuleNotFoundError as error:
        raise InputError(f"{suffix} files need the package '{error.name}': pip install '.[documents]'") from None
    except Unreadable:
        raise
    except Exception as error:  # readers of such formats raise whatever the file provokes
        raise Unreadable(f"cannot be read as {suffix} ({type(error).__name__})") from None
    return _BLANK_LINES.sub("\n\n", _NO_TEXT.sub("", text)).strip() + "\n"


def _read_plain(content: bytes, settings: ReadingSettings) -> str:
    if b"\0" in content:
        raise Unreadable("binary")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if settings.encoding_fallback is None:
            raise Unreadable("not UTF-8") from None
        try:
            text = content.decode(settings.encoding_fallback)
        except UnicodeDecodeError:
            raise Unreadable(f"neither UTF-8 nor {settings.encoding_fallback}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_html(content: bytes, settings: ReadingSettings) -> str:
    from lxml import etree, html  # noqa: PLC0415 -- only users of the format need the package

    if b"\0" in content and not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("binary")
    try:
        content.decode("utf-8")
        encoding: str | None = "utf-8"
    except UnicodeDecodeError:
        encoding = settings.encoding_fallback  # None: the one that the page names
    parser = html.HTMLParser(encoding=encoding, remove_comments=True, remove_pis=True, no_network=True)
    tree = html.document_fromstring(content, parser=parser)
    etree.strip_elements(tree, *_HTML_DROPPED, with_tail=False)
    for element in tree.iter():
        if element.tag in _HTML_BLOCKS:
            element.text = "\n\n" + (element.text or "")
            element.tail = "\n\n" + (element.tail or "")
    return str(tree.text_content())


def _read_pdf(content: bytes, _settings: ReadingSettings) -> str:
    import pypdf  # noqa: PLC0415

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    reader = pypdf.PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("encrypted")
    text = "\n\n".join(page.extract_text() for page in reader.pages)
    if not text.strip():
        raise Unreadable("PDF without text: scanned pages need OCR first")
    return text


def _read_docx(content: bytes, settings: ReadingSettings) -> str:
    import docx  # noqa: PLC0415
    from docx.table import Table  # noqa: PLC0415

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED_TIMES * settings.max_file_mib * 2**20:
            raise Unreadable("unpacks to too much")
    blocks = []
    for block in docx.Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(block, Table):
            blocks += [" | ".join(dict.fromkeys(cell.text.strip() for cell in row.cells)) for row in block.rows]
        else:
            blocks.append(block.text)
    return "\n\n".join(blocks)


_READERS: dict[str, Callable[[bytes, ReadingSettings], str]] = {
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}
