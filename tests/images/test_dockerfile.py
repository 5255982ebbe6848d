"""One Dockerfile, a target for each image: confined, installed by hash, with the project's code."""

from __future__ import annotations

import re

import pytest

from components.recipe.stages import STAGES
from images.build import NAMES, PINS
from images.lock import LOCKS
from tests.images.dockerfile import DOCKERFILE, ancestry, copies, read_stages

STAGES_OF_BUILD = read_stages()


def test_every_image_is_a_target() -> None:
    assert set(NAMES) <= set(STAGES_OF_BUILD)
    assert {stage.image for stage in STAGES} < set(NAMES)
    # Docker without a target builds the last one.
    assert list(STAGES_OF_BUILD)[-1] in NAMES
    assert list(DOCKERFILE.parent.rglob("Dockerfile")) == [DOCKERFILE, DOCKERFILE.parent / "sbom" / "Dockerfile"]


@pytest.mark.parametrize("image", NAMES)
def test_a_target_is_confined_and_holds_the_code(image: str) -> None:
    chain = ancestry(image)
    assert chain[-1].base == ("${EXPORT_BASE}" if image == "export" else "${BASE}")
    assert chain[0].values("USER")[-1] == "10001:0"
    entry = next(values[-1] for values in (stage.values("ENTRYPOINT") for stage in chain) if values)
    assert entry == ('["python", "-m", "components.server"]' if image == "server" else '["python", "-m", "components"]')
    assert ("pipeline.py", "/opt/nemotron-embed/") in copies(image) or image != "cpu"
    assert {("components", "/opt/nemotron-embed/components"), ("images/pins.env", "/opt/nemotron-embed/images/")} <= {
        *copies(image)
    }
    # Where the link in the package leads.
    assert (PINS.parent / PINS.readlink()).resolve() == (DOCKERFILE.parent / "pins.env")
    assert "TORCHINDUCTOR_CACHE_DIR" in " ".join(chain[0].values("ENV")) or image != "gpu"


@pytest.mark.parametrize("image", NAMES)
def test_packages_are_installed_by_hash_from_the_images_own_lock(image: str) -> None:
    packages = STAGES_OF_BUILD[f"{image}-packages"]
    assert packages.base == ("${EXPORT_BUILD_BASE}" if image == "export" else "${BUILD_BASE}")
    assert f"{image.upper()}_REQUIREMENTS=requirements.txt" in packages.values("ARG")
    assert f"{image}/requirements.txt" in LOCKS
    for command in packages.values("RUN"):
        assert command.count(" install ") == command.count("--require-hashes") == command.count("--no-deps")
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"} <= {*packages.values("ARG")}
    # The mirror's address may hold a password: it reaches no stage that an image consists of.
    assert not any(name.startswith("PIP_") for stage in ancestry(image) for name in stage.values("ARG"))


def test_the_image_without_a_gpu_needs_no_torch() -> None:
    for name in ("cpu", "server"):
        lock = (DOCKERFILE.parent / name / "requirements.txt").read_text(encoding="utf-8")
        assert not re.search(r"^(torch|nvidia-[\w-]+)==", lock, re.MULTILINE)
