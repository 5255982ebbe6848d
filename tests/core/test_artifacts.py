"""Artifacts are read only when they are exactly what a stage sealed."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.artifacts import MANIFEST, seal, verify
from components.core.errors import InputError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    directory = tmp_path / "eval_data"
    (directory / "qrels").mkdir(parents=True)
    (directory / "corpus.jsonl").write_bytes(b'{"_id": "1", "text": "one"}\n' * 50_000)
    (directory / "qrels" / "test.tsv").write_bytes(b"query-id\tcorpus-id\tscore\n")
    (directory / "empty.txt").touch()
    seal(directory, "eval_data", stage="prep")
    return directory


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def flip_a_byte(directory: Path) -> None:
    path = directory / "corpus.jsonl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_manifest_agrees_with_sha256sum(sealed: Path) -> None:
    files = json.loads((sealed / MANIFEST).read_bytes())["files"]
    assert set(files) == {"corpus.jsonl", "qrels/test.tsv", "empty.txt"}
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in files.items())
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet"], input=lines, text=True, cwd=sealed, check=True)
    assert {name: entry["bytes"] for name, entry in files.items()} == {n: (sealed / n).stat().st_size for n in files}


def test_digest_is_the_manifests_own(sealed: Path) -> None:
    expected = hashlib.sha256((sealed / MANIFEST).read_bytes()).hexdigest()
    assert verify(sealed, "eval_data") == verify(sealed, "eval_data", sealed=True) == expected


def test_same_content_gives_the_same_digest_in_another_place(sealed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    sealed.rename(moved)
    before = verify(moved, "eval_data")
    (moved / MANIFEST).unlink()
    assert seal(moved, "eval_data", stage="prep") == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(flip_a_byte, "corpus.jsonl does not have the sha256", id="flipped byte"),
        pytest.param(lambda d: cut_in_half(d / "corpus.jsonl"), "corpus.jsonl does not have", id="truncated file"),
        pytest.param(lambda d: (d / "qrels/test.tsv").unlink(), "qrels/test.tsv is missing", id="missing file"),
        pytest.param(lambda d: (d / "empty.txt").unlink(), "empty.txt is missing", id="missing empty file"),
        pytest.param(lambda d: (d / "new").touch(), "new is not in its manifest", id="added file"),
        pytest.param(lambda d: (d / "qrels" / MANIFEST).touch(), "is not in its manifest", id="added nested manifest"),
        pytest.param(lambda d: cut_in_half(d / MANIFEST), "manifest.json cannot be read", id="truncated manifest"),
        pytest.param(lambda d: (d / MANIFEST).write_text("[]"), "manifest.json cannot be read", id="other JSON"),
        pytest.param(lambda d: (d / MANIFEST).write_bytes(b"\xff\xfe\x00"), "cannot be read", id="binary manifest"),
        pytest.param(lambda d: edit_manifest(d, files=["a"]), "cannot be read", id="files are no table"),
        pytest.param(lambda d: edit_manifest(d, files={"a": 1}), "cannot be read", id="entries are no records"),
        pytest.param(lambda d: edit_manifest(d, kind="corpus"), "is a 'corpus' artifact", id="wrong kind"),
        pytest.param(lambda d: edit_manifest(d, schema_version=99), "schema version 99", id="wrong schema version"),
    ],
)
def test_damage_is_refused(sealed: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(sealed)
    with pytest.raises(InputError, match=message) as error:
        verify(sealed, "eval_data")
    assert str(sealed) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_without_manifest_is_only_taken_from_a_user(sealed: Path) -> None:
    (sealed / MANIFEST).unlink()
    assert verify(sealed, "eval_data") is None
    with pytest.raises(InputError, match=r"has no manifest\.json: it is not complete"):
        verify(sealed, "eval_data", sealed=True)


def test_provenance_travels_with_the_files(sealed: Path) -> None:
    manifest = json.loads((sealed / MANIFEST).read_bytes())
    assert (manifest["kind"], manifest["stage"]) == ("eval_data", "prep")
