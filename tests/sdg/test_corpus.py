"""What is read of a corpus, what never is, and what the user is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from components.core.errors import InputError
from components.sdg.component import SdgConfig
from tests.sdg.reading import read_directory

TEXT = "A document that is long enough to be used, {}, by any of the tests here."


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(TEXT.format(name), encoding="utf-8")
    return root


def read(root: Path, **settings: object) -> list[str]:
    return [document.source_id for document in read_directory(root, SdgConfig(**settings)).documents]


def test_reads_nothing_that_a_link_names(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside", "token.txt")
    corpus = write(tmp_path / "corpus", "a.txt")
    (corpus / "file.txt").symlink_to(secret / "token.txt")
    (corpus / "folder").symlink_to(secret)
    result = read_directory(corpus, SdgConfig())
    assert [document.source_id for document in result.documents] == ["a.txt"]
    assert result.skipped == {"link": 2}


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")

    def blocked(*_: object) -> None:
        raise TimeoutError("reading the corpus blocks")

    previous = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(20)
    try:
        result = read_directory(tmp_path, SdgConfig())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert len(result.documents) == 1
    assert result.skipped == {"not a regular file": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00" * 100, "binary"),
        ("Größe ".encode("latin-1") * 30, "not UTF-8"),
        (b"", "shorter than min_text_length (50 characters)"),
        (b" \n" * 100, "shorter than min_text_length (50 characters)"),
    ],
    ids=["binary", "latin-1", "empty", "blank"],
)
def test_leaves_out_what_is_no_text_and_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path, "a.txt")
    (tmp_path / "b.txt").write_bytes(content)
    result = read_directory(tmp_path, SdgConfig())
    assert [document.source_id for document in result.documents] == ["a.txt"]
    assert result.skipped == {reason: 1}


def test_min_text_length_counts_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 50, encoding="utf-8")
    (tmp_path / "b.txt").write_text("ü" * 49, encoding="utf-8")
    assert read(tmp_path, min_text_length=50) == ["a.txt"]


def test_reads_the_extensions_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.MD", "c.rst", "d", "research.nvidia.com_blog", ".hidden.txt", ".git/e.txt")
    assert read(tmp_path) == ["a.txt", "b.MD", "d", "research.nvidia.com_blog"]
    assert read(tmp_path, file_extensions="rst") == ["c.rst"]


def test_num_files_takes_the_first_in_order_whatever_the_disk_says(tmp_path: Path) -> None:
    write(tmp_path, "z.txt", "b/c.txt", "a.txt", "b/a.txt")
    assert read(tmp_path) == ["a.txt", "b/a.txt", "b/c.txt", "z.txt"]
    assert read(tmp_path, num_files=2) == ["a.txt", "b/a.txt"]


def test_folds_line_ends_and_byte_order_mark_and_keeps_equal_texts_once(tmp_path: Path) -> None:
    text = "First line of a text that is long enough.\nSecond line of it.\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    result = read_directory(tmp_path, SdgConfig())
    assert [document.text for document in result.documents] == [text]
    assert result.skipped == {"same text as another file": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no files"),
        (("a.pdf", "b.pdf"), r"found 2 \.pdf\): change file_extensions"),
        ((".hidden.txt",), "holds no files"),
    ],
    ids=["empty", "extension", "hidden"],
)
def test_a_corpus_without_documents_is_an_error_that_says_what_to_change(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_directory(write(tmp_path, *names), SdgConfig())
