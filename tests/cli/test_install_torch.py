"""PyTorch's build for the CPU is installed where there is no GPU, from an index that answers; else nothing is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from components.command_line import install_torch

CONSTRAINTS = str(Path(__file__).parents[2] / "constraints.txt")
# Nothing listens there.
UNREACHABLE = "http://127.0.0.1:9/whl/cpu"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def write_wheel(folder: Path, version: str) -> None:
    """Write a package index at ``folder`` with an empty torch of ``version``."""
    name, info = f"torch-{version}-py3-none-any.whl", f"torch-{version}.dist-info"
    (folder / "torch").mkdir(parents=True)
    with zipfile.ZipFile(folder / "torch" / name, "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "torch" / "index.html").write_text(f'<a href="{name}">{name}</a>')


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of two indexes: ``/cpu`` with PyTorch for the CPU, and ``/default``."""
    write_wheel(tmp_path / "cpu", "2.13.0+cpu")
    write_wheel(tmp_path / "default", "2.13.0")
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pip for an empty environment, on a machine without a GPU whose user configured nothing."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(install_torch, "is_torch_installed", lambda: False)
    monkeypatch.setattr(install_torch, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv" / "bin" / "python")]


def installed_version(pip: list[str]) -> str:
    """Return the version of torch in the environment of ``pip``, or nothing."""
    lines = subprocess.run([*pip, "list", "--format", "freeze"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("==") for line in lines.splitlines()).get("torch", "")


@pytest.mark.slow
def test_without_a_gpu_the_build_for_the_cpu_is_installed_and_kept(
    address: str, pip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_torch.main(["--constraint", CONSTRAINTS, "--index", f"{address}/cpu"], pip) == 0
    assert installed_version(pip) == "2.13.0+cpu"
    assert capsys.readouterr().out == (
        f"PyTorch: the build for the CPU from {address}/cpu, because there is no NVIDIA GPU.\n"
    )
    # As the Makefile goes on: the constraint is satisfied, and the default index is not asked for another.
    more = ["install", "--quiet", "--index-url", f"{address}/default", "--constraint", CONSTRAINTS, "torch>=2.9"]
    subprocess.run([*pip, *more], check=True)
    assert installed_version(pip) == "2.13.0+cpu"


@pytest.mark.slow
def test_an_index_that_does_not_answer_leaves_it_to_the_default_one(
    pip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert install_torch.main(["--constraint", CONSTRAINTS, "--index", UNREACHABLE], pip) == 0
    assert installed_version(pip) == ""
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("PyTorch: the build for CUDA (gigabytes) from the default index") and UNREACHABLE in line


def test_a_machine_with_a_gpu_gets_the_build_for_cuda(
    address: str, pip: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_torch, "has_nvidia_gpu", lambda: True)
    assert install_torch.main(["--constraint", CONSTRAINTS, "--index", f"{address}/cpu"], pip) == 0
    assert installed_version(pip) == ""
    assert capsys.readouterr().out == "PyTorch: the build for CUDA, because this machine has an NVIDIA GPU.\n"


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "PIP_NO_INDEX"])
def test_a_users_own_index_is_respected(
    variable: str, address: str, pip: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, f"{address}/default" if variable == "PIP_INDEX_URL" else "1")
    assert install_torch.main(["--constraint", CONSTRAINTS, "--index", f"{address}/cpu"], pip) == 0
    assert installed_version(pip) == ""
    assert "your own package index" in capsys.readouterr().out


def test_a_driver_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install_torch.has_nvidia_gpu()


def test_what_is_installed_stays(
    pip: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_torch, "is_torch_installed", lambda: True)
    assert install_torch.main([], ["false"]) == 0
    assert capsys.readouterr().out == ""
