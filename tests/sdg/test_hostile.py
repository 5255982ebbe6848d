"""Corpora and settings that are wrong or mean harm: one line says so, nothing is paid, nothing is left behind."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.__main__ import main
from tests.sdg.llm_server import LlmServer, llm_server

KEY = "nvapi-canary-hostile"
PROSE = "A document that is long enough to be read, about valves and the people who fit them. " * 3


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    with llm_server() as running:
        yield running


def assert_refused(
    arguments: list[str], server: LlmServer, work: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """One line with ``words``, exit code 2 or 3, no request, no artifact, no key and no traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVIDIA_API_KEY", KEY)
        before = len(server.requests)
        code = main(["sdg", "--work", str(work), *arguments])
    errors = capsys.readouterr().err
    assert code in (2, 3), errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words.casefold() in lines[0].casefold()
    assert len(lines[0]) < 2000
    assert "Traceback" not in errors
    assert KEY not in errors
    assert len(server.requests) == before
    assert not work.exists() or not any(work.iterdir())


def text(name: str, content: str | bytes = PROSE) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / name).symlink_to(target)


def unix_socket(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root)  # a path of a socket may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind("s.txt")
    finally:
        os.chdir(here)


def device(root: Path) -> None:
    try:
        os.mknod(root / "zero.txt", 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device needs root")


def huge(root: Path) -> None:
    with (root / "huge.txt").open("wb") as out:
        out.truncate(500 * 2**20)


def sealed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """A corpus that a stage published, and that somebody changed afterwards."""

    def make(root: Path) -> None:
        from components.core.artifacts import seal  # noqa: PLC0415

        text("a.txt")(root)
        text("b.txt", PROSE + "More.")(root)
        seal(root, "corpus")
        change(root)

    return make


CORPORA: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda root: None, "holds no files"),
    "only empty folders": (lambda root: (root / "a" / "b").mkdir(parents=True), "holds no files"),
    "folder with a file's name": (lambda root: (root / "x.txt").mkdir(), "holds no files"),
    "only PDF": (text("a.pdf"), ".pdf"),
    "only DOCX": (text("a.docx"), ".docx"),
    "only unknown extensions": (text("a.xyz"), "file_extensions"),
    "empty files": (text("a.txt", ""), "shorter than min_text_length"),
    "blanks only": (text("a.txt", " \n\t" * 200), "shorter than min_text_length"),
    "too short": (text("a.txt", "short"), "shorter than min_text_length"),
    "byte order mark only": (text("a.txt", b"\xef\xbb\xbf"), "shorter than min_text_length"),
    "Latin-1": (text("a.txt", ("Größe " * 40).encode("latin-1")), "not UTF-8"),
    "Windows-1252": (text("a.txt", ("“quoted” " * 40).encode("cp1252")), "not UTF-8"),
    "UTF-16 little endian": (text("a.txt", PROSE.encode("utf-16-le")), "binary"),
    "UTF-16 with its mark": (text("a.txt", PROSE.encode("utf-16")), "binary"),
    "UTF-32": (text("a.txt", PROSE.encode("utf-32")), "binary"),
    "surrogates in UTF-8": (text("a.txt", b"\xed\xa0\x80" + PROSE.encode()), "not UTF-8"),
    "overlong UTF-8": (text("a.txt", b"\xc0\xaf" + PROSE.encode()), "not UTF-8"),
    "cut in a character": (text("a.txt", ("é" * 100).encode()[:-1]), "not UTF-8"),
    "NUL bytes": (text("a.txt", b"\0" * 500), "binary"),
    "one NUL byte": (text("a.txt", PROSE.encode() + b"\0"), "binary"),
    "gzip called .txt": (text("a.txt", gzip.compress(PROSE.encode() * 9)), "no document"),
    "program without extension": (text("core", b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 9), "binary"),
    "PNG called .md": (text("a.md", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" * 40), "binary"),
    "500 MB": (huge, "larger than"),
    "hidden file": (text(".notes.txt"), "holds no files"),
    "environment file with a key": (text(".env", "API_KEY=abcdef " * 20), "holds no files"),
    "git folder": (text(".git/config.txt"), "holds no files"),
    "link to /etc/passwd": (link("a.txt", "/etc/passwd"), "holds no files"),
    "link to a folder outside": (link("etc", "/etc"), "holds no files"),
    "link to itself": (link("a.txt", "a.txt"), "holds no files"),
    "loop of folders": (link("again", "."), "holds no files"),
    "dangling link": (link("a.txt", "nowhere.txt"), "holds no files"),
    "link to the process's memory": (link("a.txt", "/proc/self/environ"), "holds no files"),
    "FIFO": (lambda root: os.mkfifo(root / "a.txt"), "holds no files"),
    "socket": (unix_socket, "holds no files"),
    "device": (device, "holds no files"),
    "name that is no UTF-8": (lambda root: text(os.fsdecode(b"a\xff.txt"))(root), "name is not UTF-8"),
    "changed after it was published": (sealed(text("a.txt", "Another text. " * 9)), "sha256"),
    "file missing since": (sealed(lambda root: (root / "a.txt").unlink()), "missing"),
    "file added since": (sealed(text("c.txt")), "not in its manifest"),
    "broken manifest": (sealed(text("manifest.json", "{")), "manifest"),
    "manifest of another artifact": (
        sealed(text("manifest.json", '{"kind": "checkpoint", "schema_version": 1, "files": {}}')),
        "checkpoint",
    ),
    "manifest that is a list": (sealed(text("manifest.json", "[]")), "manifest"),
}


@pytest.mark.parametrize(("make", "words"), CORPORA.values(), ids=CORPORA.keys())
def test_a_corpus_that_cannot_be_used(
    server: LlmServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    words: str,
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make(corpus)
    arguments = ["--corpus", str(corpus), f"llm_base_url={server.url}"]
    assert_refused(arguments, server, tmp_path / "work", capsys, words)


def test_a_corpus_that_is_not_there_or_no_folder(
    server: LlmServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file.txt").write_text(PROSE)
    for path in ("nowhere", "file.txt", "../nowhere", "nul\n"):
        arguments = ["--corpus", str(tmp_path / path), f"llm_base_url={server.url}"]
        assert_refused(arguments, server, tmp_path / "work", capsys, "there is no directory")


SETTINGS: dict[str, tuple[str, str]] = {
    "unknown": ("num_pair=3", "did you mean 'num_pairs'"),
    "unknown, nothing close": ("frobnicate=3", "frobnicate"),
    "of another stage": ("finetune.num_epochs=3", "finetune"),
    "no value": ("num_pairs", "NAME=VALUE"),
    "empty number": ("num_pairs=", "num_pairs"),
    "text for a number": ("num_pairs=many", "num_pairs"),
    "list for a number": ("num_pairs=[1]", "num_pairs"),
    "fraction for a count": ("num_pairs=1.5", "num_pairs"),
    "zero pairs": ("num_pairs=0", "num_pairs"),
    "negative pairs": ("num_pairs=-1", "num_pairs"),
    "zero files": ("num_files=0", "num_files"),
    "negative length": ("min_text_length=-1", "min_text_length"),
    "zero sentences": ("sentences_per_chunk=0", "sentences_per_chunk"),
    "zero words": ("chunk_max_words=0", "chunk_max_words"),
    "no such generator": ("generator=magic", "generator"),
    "no such method": ("offline_method=magic", "offline_method"),
    "hops that end before they start": ("min_hops=4", "min_hops"),
    "zero hops": ("min_hops=0", "min_hops"),
    "complexity over five": ("min_complexity=6", "min_complexity"),
    "similarity over one": ("similarity_threshold=1.5", "similarity_threshold"),
    "similarity that is no number": ("similarity_threshold=.nan", "similarity_threshold"),
    "share over one": ("min_success=2", "min_success"),
    "negative temperature": ("temperature=-0.1", "temperature"),
    "top_p of zero": ("top_p=0", "top_p"),
    "no tokens": ("max_tokens=0", "max_tokens"),
    "no time": ("request_timeout=0", "request_timeout"),
    "no tries": ("max_attempts=0", "max_attempts"),
    "nothing in flight": ("max_parallel_requests_for_gen=0", "max_parallel_requests_for_gen"),
    "negative cap": ("max_cost=-5", "max_cost"),
    "cap without prices": ("max_cost=5", "price"),
    "cap with the price of another model": ("max_cost=5 prices={other: {prompt: 1}}", "price"),
    "negative price": ("prices={m: {prompt: -1}}", "prices"),
    "price without a number": ("prices={m: {prompt: cheap}}", "prices"),
    "price that is no record": ("prices={m: 3}", "prices"),
    "unknown field of a price": ("prices={m: {prompt: 1, input: 2}}", "prices"),
    "unknown role": ("role_parameters={writer: {temperature: 0}}", "role_parameters"),
    "unknown parameter of a role": ("role_parameters={quality_judge: {top_k: 3}}", "top_k"),
    "unknown provider": ("quality_judge_provider=mine", "quality_judge_provider"),
    "provider without address": ("providers={mine: {api_key_env: KEY}}", "base_url"),
    "provider with a key in it": (
        "providers={mine: {base_url: 'https://llm.example/v1', headers: {Authorization: Bearer x}}}",
        "api_key_env",
    ),
    "built-in provider again": ("providers={nvidia: {base_url: 'https://llm.example/v1'}}", "llm_base_url"),
    "provider of two-line headers": (
        'providers={mine: {base_url: "https://llm.example/v1", headers: {X-Team: "a\\nb"}}} embed_provider=mine',
        "X-Team",
    ),
    "key from a variable that is not set": (
        "llm_base_url=https://llm.example.com/v1 api_key_env=NO_SUCH_VARIABLE",
        "NO_SUCH_VARIABLE is not set",
    ),
    "http to the world": ("llm_base_url=http://llm.example.com/v1", "https"),
    "address of the cloud's credentials": ("llm_base_url=http://169.254.169.254/latest", "cloud"),
    "the same, in IPv6": ("llm_base_url=http://[fe80::1]/v1", "cloud"),
    "file address": ("llm_base_url=file:///etc/passwd", "https://"),
    "address without host": ("llm_base_url=https:///v1", "https://"),
    "address with a user": ("llm_base_url=https://me:secret@llm.example.com/v1", "a password in it"),
    "address with a query": ("llm_base_url=https://llm.example.com/v1?key=abc", "query"),
    "broken IPv6 address": ("llm_base_url=https://[::1", "https://"),
    "ledger at an unknown scheme": ("ledger_uri=ftp://host/ledger", "ledger_uri"),
    "ledger in a bucket without name": ("ledger_uri=s3://", "ledger_uri"),
    "ledger below a file": ("ledger_uri=/etc/passwd/ledger", "ledger_uri"),
    "ledger where nobody may write": ("ledger_uri=/proc/ledger", "ledger_uri"),
}


@pytest.mark.parametrize(("assignments", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_cannot_be_used(
    server: LlmServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], assignments: str, words: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text("a.txt")(corpus)
    address = [] if "llm_base_url" in assignments else [f"llm_base_url={server.url}"]
    # A blank separates settings only before a name.
    parts = assignments.replace(" prices=", "\0prices=").replace(" embed_", "\0embed_").replace(" api_", "\0api_")
    arguments = ["--corpus", str(corpus), *parts.split("\0"), *address]
    assert_refused(arguments, server, tmp_path / "work", capsys, words)


def bomb(depth: int) -> str:
    """A list that would have 9 to the power of ``depth`` elements if anybody wrote it out."""
    inner = "[x, x, x, x, x, x, x, x, x]"
    for level in range(1, depth):
        inner = f"[&l{level} {inner}" + f", *l{level}" * 8 + "]"
    return inner


FILES: dict[str, tuple[bytes, str]] = {
    "broken YAML": (b"num_pairs: [1", "cannot be read as YAML"),
    "tab in YAML": (b"\tnum_pairs: 1", "cannot be read as YAML"),
    "a list": (b"- num_pairs", "expected names and values"),
    "a number": (b"7", "expected names and values"),
    "empty": (b"", "expected names and values"),
    "binary": (bytes(range(256)), "cannot be read as YAML"),
    "not UTF-8": ("llm_base_url: größe".encode("latin-1"), "cannot be read as YAML"),
    "a Python object": (b"num_pairs: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    "a bomb of aliases under an unknown name": (f"x: {bomb(11)}".encode(), "'x'"),
    "a bomb of aliases for a number": (f"num_pairs: {bomb(11)}".encode(), "num_pairs"),
    "a bomb of aliases for a record": (f"prices: {{m: {bomb(11)}}}".encode(), "prices"),
    "a record that holds itself": (b"prices: &p {m: *p}", "prices"),
    "unknown setting": (b"num_pair: 7", "num_pairs"),
    "key in the file": (b"nvidia_api_key: abc", "nvidia_api_key"),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES.keys())
def test_files_of_settings_that_cannot_be_used(
    server: LlmServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text("a.txt")(corpus)
    (tmp_path / "settings.yaml").write_bytes(content)
    arguments = ["--corpus", str(corpus), "--config", str(tmp_path / "settings.yaml"), f"llm_base_url={server.url}"]
    assert_refused(arguments, server, tmp_path / "work", capsys, words)


NAMES = [
    "-rf.txt",
    "a\nb.txt",
    "<img src=x onerror=alert(1)>.txt",
    "ü ñ 数.txt",
    "a;b|c.txt",
    "/".join("d" * 20) + "/e.txt",
]


def test_names_mean_nothing(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for number, name in enumerate(NAMES):
        text(name, f"Document {number} is about valve{number} and more of number {number}. " * 5)(corpus)
    assert main(["sdg", "--work", str(tmp_path), "--corpus", str(corpus), "generator=offline"]) == 0
    lines = (tmp_path / "qa_pairs" / "qa_pairs.jsonl").read_text(encoding="utf-8").split("\n")
    assert sorted(json.loads(line)["source_id"] for line in lines if line) == sorted(NAMES)
