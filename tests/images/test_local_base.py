"""images/local_base.sh with stand-ins for debootstrap and Docker: which wheels it brings, and how it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    "debootstrap": 'for root; do case "$root" in /*) mkdir -p "$root/usr/local/bin" "$root/usr/lib";; esac; done',
    "docker": 'if [ "$1" = build ]; then for last; do :; done; ls "$last/wheels" > "$WHEELS"; else cat > /dev/null; fi',
    "chroot": "true",
}
pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and Path("/etc/ssl/certs/ca-certificates.crt").exists()), reason="for Debian"
)


def make_base(tmp_path: Path, find_links: str, **stand_ins: str) -> subprocess.CompletedProcess[str]:
    """Run the script as the documentation says, then print the base."""
    for name, text in (STAND_INS | stand_ins).items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "MIRROR": "http://mirror.example.com/debian",
        "PIP_FIND_LINKS": find_links, "WHEELS": str(tmp_path / "wheels.txt"), "TMPDIR": str(tmp_path),
    }  # fmt: skip
    command = 'eval "$(images/local_base.sh my:base)" && echo "built on $BASE, by $BUILD_BASE"'
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_folders_without_wheels_bring_none(tmp_path: Path) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    for folder in (full, empty):
        folder.mkdir()
    (full / "torch-2.13.0+cpu-py3-none-any.whl").touch()
    (full / "notes.txt").touch()
    answer = make_base(tmp_path, f"{empty} {tmp_path / 'missing'} https://wheels.example.com {full}")
    assert (answer.returncode, answer.stdout) == (0, "built on my:base, by my:base-build\n"), answer.stderr
    assert (tmp_path / "wheels.txt").read_text() == "torch-2.13.0+cpu-py3-none-any.whl\n"
    assert make_base(tmp_path, str(empty)).returncode == 0
    assert (tmp_path / "wheels.txt").read_text() == ""


@pytest.mark.parametrize("program", ["debootstrap", "docker"])
def test_a_base_that_fails_stops_the_build(program: str, tmp_path: Path) -> None:
    answer = make_base(tmp_path, "", **{program: "exit 1"})
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.endswith("error: images/local_base.sh made no base\n")
    assert not list(tmp_path.glob("tmp.*"))
