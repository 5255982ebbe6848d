"""What goes into an image is named by version and hash, and agrees with what the tests ran with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images.build import NAMES, choose_base, pins
from images.lock import LOCKS, TOOLS

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "images"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package; asserts that every one has a hash."""
    text = (IMAGES / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, set[str]] = {}
    for line in filter(None, text.splitlines()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
        requirement = Requirement(line.partition("--hash")[0].strip())
        (version,) = requirement.specifier
        assert version.operator == "=="
        found.setdefault(canonicalize_name(requirement.name), set()).add(version.version)
    return found


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    """The project's requirements with ``extras``, its own extras followed."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            mine = requirement.name == PROJECT["name"]
            requirements += wanted(tuple(requirement.extras)) if mine else [requirement]
    return requirements


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_holds_what_its_image_needs(name: str) -> None:
    versions = locked(name)
    for requirement in wanted(LOCKS[name]):
        if requirement.marker and not requirement.marker.evaluate(default_environment()):
            continue
        found = versions.get(canonicalize_name(requirement.name))
        assert found, f"{name} lacks {requirement.name}: run make lock"
        assert all(requirement.specifier.contains(version, prereleases=True) for version in found)


@pytest.mark.parametrize("name", LOCKS)
def test_images_hold_the_versions_that_the_tests_ran_with(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    tested = {canonicalize_name(package): version for package, version in tested.items()}
    for package, versions in locked(name).items():
        if package in tested:
            assert {version.partition("+")[0] for version in versions} == {tested[package]}, package


@pytest.mark.parametrize("name", [*LOCKS, *TOOLS])
def test_a_lock_file_names_no_place(name: str) -> None:
    """Neither an index nor a folder: where packages come from is the builder's own affair."""
    assert locked(name)
    assert not re.search(r"://|--(index|extra|find|trusted)", (IMAGES / name).read_text(encoding="utf-8"))


def test_cuda_is_in_the_images_for_gpus_only() -> None:
    for name in LOCKS:
        cuda = any(package.startswith("nvidia-") for package in locked(name))
        assert cuda == (name in ("gpu/requirements.txt", "export/requirements.txt", "server/requirements-gpu.txt"))
        assert locked(name).get("torch", {""}) <= {"", "2.13.0+cpu" if name.endswith("-cpu.txt") else "2.13.0"}


@pytest.mark.parametrize("image", NAMES)
def test_a_base_is_named_by_digest(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE", "EXPORT_BASE"):
        monkeypatch.delenv(name, raising=False)
    committed = pins()
    assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", choose_base(image, committed))
