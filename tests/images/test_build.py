"""Building, pushing and running, against engines that only remember what they were told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from components import __version__
from images import build, run_stage
from tests.chart.rendering import objects, one

DIGEST = "sha256:" + "ab" * 32
REGISTRY = "registry.example.com:5000/team"
ENGINE = """#!/usr/bin/env python3
import json, sys
with open("{log}", "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
if "fail" in "{mode}":
    sys.exit(125)
if sys.argv[1] == "push" and "--digestfile" in sys.argv:
    open(sys.argv[sys.argv.index("--digestfile") + 1], "w").write("{digest}")
if sys.argv[1:3] == ["image", "inspect"]:
    other = "elsewhere/cpu@sha256:" + "00" * 32
    print(json.dumps([other] if "{mode}" == "unpushed" else [other, sys.argv[-1].rpartition(":")[0] + "@{digest}"]))
"""


class Engine:
    """A program that stands for docker or podman; ``calls`` are its command lines."""

    def __init__(self, directory: Path, name: str, mode: str = "") -> None:
        self.path, self._log = directory / name, directory / "calls.jsonl"
        self.path.write_text(ENGINE.format(log=self._log, digest=DIGEST, mode=mode))
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def run(self, command: str, *arguments: str) -> int:
        options = ["--engine", str(self.path), "--registry", REGISTRY, *arguments]
        return run_stage.main(options) if command == "stage" else build.main([command, *options])


@pytest.fixture
def pins_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pins.env"
    path.write_text(build.PINS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(build, "PINS", path)
    monkeypatch.setattr(build, "VALUES", tmp_path / "values.yaml")
    machine = ("BUILD_BASE", "BUILD_NETWORK", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "STAGE_OPTIONS")
    for name in (*machine, *(line.partition("=")[0] for line in path.read_text().splitlines() if "=" in line)):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_pushed_digests_are_pinned(engine: str, tmp_path: Path, pins_file: Path) -> None:
    tool = Engine(tmp_path, engine)
    assert tool.run("push") == 0
    pinned = build.pins()
    for image in build.NAMES:
        assert pinned[f"{image.upper()}_IMAGE"] == f"{REGISTRY}/{image}:{__version__}@{DIGEST}"
    # The chart's Jobs upload pipelines that name the same images.
    values = yaml.safe_load(build.VALUES.read_text(encoding="utf-8"))
    assert values == {"images": {image: pinned[f"{image.upper()}_IMAGE"] for image in build.NAMES}}
    job = one(objects({**values, "pipelines": {"upload": ["sdg"]}}), "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == pinned["CPU_IMAGE"]
    assert {"name": "GPU_IMAGE", "value": pinned["GPU_IMAGE"]} in container["env"]
    # Everything else in the file stays.
    before = [line for line in (build.ROOT / "images/pins.env").read_text().splitlines() if "_IMAGE=" not in line]
    assert [line for line in pins_file.read_text().splitlines() if "_IMAGE=" not in line] == before


def test_a_push_without_digest_pins_nothing(
    tmp_path: Path, pins_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pins_file.read_text()
    assert Engine(tmp_path, "docker", "unpushed").run("push") == 2
    assert "does not say under which digest" in capsys.readouterr().err
    assert Engine(tmp_path, "docker", "fail").run("push") == 125
    assert pins_file.read_text() == before
    assert not build.VALUES.exists()


def test_images_are_built_on_what_is_pinned(tmp_path: Path, pins_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Engine(tmp_path, "docker")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:canary-0123456789@mirror.example.com/simple")
    assert tool.run("build", "--variant", "cpu") == 0
    assert [call[-2] for call in tool.calls] == [f"{REGISTRY}/{image}:{__version__}" for image in build.NAMES]
    arguments = [{call[i + 1] for i, text in enumerate(call) if text == "--build-arg"} for call in tool.calls]
    assert [call[call.index("--target") + 1] for call in tool.calls] == list(build.NAMES)
    for name in ("BASE", "EXPORT_BASE"):
        assert all(f"{name}={build.pins()[name]}" in given for given in arguments)
    # By name: the engine reads the value itself, and nobody sees it among the machine's processes.
    assert all("PIP_INDEX_URL" in given for given in arguments)
    assert "canary" not in json.dumps(tool.calls)
    # Only two of the images have a variant for the CPU. Every target gets the same arguments: one cache for all.
    chosen = {text for given in arguments for text in given if "REQUIREMENTS" in text}
    assert chosen == {"GPU_REQUIREMENTS=requirements-cpu.txt", "EXPORT_REQUIREMENTS=requirements-cpu.txt"}
    assert all(given == arguments[0] for given in arguments)


def test_a_stage_runs_confined_in_its_own_image(tmp_path: Path, pins_file: Path) -> None:
    tool = Engine(tmp_path, "docker")
    assert tool.run("stage", "--work", str(tmp_path / "work"), "eval", "k_values=[1,10]", "--dry-run") == 0
    (call,) = tool.calls
    assert call[:2] == ["run", "--rm"]
    assert call[call.index(f"{REGISTRY}/gpu:{__version__}") :][1:] == [
        "eval", "--work", "/work", "k_values=[1,10]", "--dry-run",
    ]  # fmt: skip
    assert "--read-only" in call and call[call.index("--cap-drop") + 1] == "ALL"
    assert tool.run("stage", "--work", str(tmp_path / "more"), "sdg") == 0
    assert f"{REGISTRY}/cpu:{__version__}" in tool.calls[-1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a stage as another user")
def test_a_stage_that_root_starts_can_write_its_work_and_is_not_root(
    tmp_path: Path, pins_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, work, roots = Engine(tmp_path, "docker"), tmp_path / "work", tmp_path / "roots"
    for _ in range(2):
        assert tool.run("stage", "--work", str(work), "sdg") == 0
    assert {call[call.index("--user") + 1] for call in tool.calls} == {f"{work.stat().st_uid}:0"} == {"10001:0"}
    roots.mkdir()
    assert tool.run("stage", "--work", str(roots), "sdg") == 2
    assert capsys.readouterr().err == (
        f"error: {roots} is root's, and a stage does not run as root: chown -R 10001 {roots}\n"
    )


def test_a_mistake_is_one_line(tmp_path: Path, pins_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Engine(tmp_path, "docker").run("stage", "training") == 2
    assert capsys.readouterr().err == "error: there is no stage 'training'\n"
    missing = ["build", "--engine", str(tmp_path / "none"), "--registry", REGISTRY]
    assert build.main(missing) == 2
    assert capsys.readouterr().err.startswith("error: ")
