"""Builds, pushes and describes the images, with docker, podman or buildah; `make images` and its siblings call it.

Needs Python 3.11 and the engine, nothing of this project's packages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "images" / "pins.env"
VALUES = ROOT / "images" / "values.yaml"
NAMES = ("cpu", "gpu", "export", "server")
# The extras of pyproject.toml that each image's lock file holds. The variants are for machines without a GPU, and for
# a server that has one.
LOCKS = {
    "cpu/requirements.txt": ("sdg", "documents", "server", "deploy", "kfp"),
    "gpu/requirements.txt": ("train", "track", "trainjob"),
    "gpu/requirements-cpu.txt": ("train", "track", "trainjob"),
    "export/requirements.txt": ("export", "quantization"),
    "export/requirements-cpu.txt": ("export",),
    "server/requirements.txt": ("server",),
    "server/requirements-gpu.txt": ("server-gpu",),
}
# What only builds need: the backend of packages without a wheel, and the tool that lists what an image holds.
TOOLS = {
    "cpu/requirements-build.txt": "setuptools>=80\nwheel>=0.45\n",
    "sbom/requirements.txt": "cyclonedx-bom>=7.2,<8\n",
}
# Of the images, and of stages that root starts.
USER = 10001
VARIANTS = ("cpu", "gpu")
CPU_TORCH = "torch==2.13.0+cpu"
# What a pod of a cluster that enforces the restricted Pod Security Standard may do, and a read-only root besides.
CONFINED = (
    "--read-only", "--tmpfs", "/tmp:rw,exec,size=4g", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input, else the engine's own."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd[:3])} ... failed with exit code {error.returncode}", file=sys.stderr)
        return error.returncode
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="images/build.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, run in (("build", _build), ("push", _push), ("sbom", _sbom), ("stage", _stage), ("lock", _lock)):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        if name == "lock":
            continue
        sub.add_argument("--engine", default="docker", help="docker, podman or buildah")
        sub.add_argument("--registry", required=True, help="where the images lie, without the images' own names")
        sub.add_argument("--variant", choices=VARIANTS, help="requirements-VARIANT.txt, in images that have one")
        if name == "stage":
            sub.add_argument("stage")
            sub.add_argument("--work", type=Path, default=ROOT / "work" / "stage", help="mounted at /work")
            sub.add_argument("arguments", nargs=argparse.REMAINDER)
        else:
            sub.add_argument("--image", dest="images", action="append", choices=NAMES, help="only this one")
    return parser


def version() -> str:
    """The version of the project, which is the images' tag."""
    text = (ROOT / "components" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.*)"', text, re.MULTILINE)[1]


def pins() -> dict[str, str]:
    """What images/pins.env says; an environment variable of the same name wins."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=")[::2] for line in lines if line and not line.startswith("#"))
    return {name: os.environ.get(name, value) for name, value in pairs}


def tag(registry: str, image: str) -> str:
    """Repository and tag of an image."""
    return f"{registry}/{image}:{version()}"


def base_of(image: str, pinned: Mapping[str, str]) -> str:
    """What ``image`` is built on."""
    return pinned.get(f"{image.upper()}_BASE") or pinned["BASE"]


def _build(args: argparse.Namespace) -> None:
    pinned = pins()
    git = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    for image in args.images or NAMES:
        given = {"BASE": base_of(image, pinned), "VERSION": version(), "REVISION": revision or "unknown"}
        requirements = f"requirements-{args.variant}.txt"
        if args.variant and (ROOT / "images" / image / requirements).is_file():
            given["REQUIREMENTS"] = requirements
        started, name = time.monotonic(), tag(args.registry, image)
        _engine(args.engine, "build", *_build_options(given), "-f", f"images/{image}/Dockerfile", "-t", name, ".")
        print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _build_options(given: Mapping[str, str]) -> list[str]:
    """Build arguments; those of the machine, which reach no image, come from the environment."""
    arguments = [f"{name}={value}" for name, value in given.items()]
    if base := os.environ.get("BUILD_BASE"):
        arguments.append(f"BUILD_BASE={base}")
    # By name alone, the engine reads the value itself: an index may have a password in its address.
    arguments += [name for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if os.environ.get(name)]
    options = [text for argument in arguments for text in ("--build-arg", argument)]
    # Package mirrors are often reached by the machine's own network alone.
    return [*options, "--network", network] if (network := os.environ.get("BUILD_NETWORK")) else options


def _push(args: argparse.Namespace) -> None:
    """Push, then write each image with its digest to images/pins.env and images/values.yaml.

    Compiled pipelines have them from the one, the chart takes the other.
    """
    text = PINS.read_text(encoding="utf-8")
    for image in args.images or NAMES:
        pushed = tag(args.registry, image)
        digest, name = _push_one(args.engine, pushed), f"{image.upper()}_IMAGE"
        text = re.sub(rf"^{name}=.*$", f"{name}={pushed}@{digest}", text, flags=re.MULTILINE)
        print(f"pushed {pushed}@{digest}", flush=True)
    PINS.write_text(text, encoding="utf-8")
    named = {name: re.search(rf"^{name.upper()}_IMAGE=(.*)$", text, re.MULTILINE)[1] for name in NAMES}
    lines = ["# Written by `make push`: helm install ... --values images/values.yaml", "images:"]
    lines += [f"  {name}: {image}" for name, image in named.items()]
    VALUES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _push_one(engine: str, image: str) -> str:
    if Path(engine).name in ("podman", "buildah"):
        with tempfile.NamedTemporaryFile("r") as file:
            _engine(engine, "push", "--digestfile", file.name, image)
            return file.read().strip()
    _engine(engine, "push", image)
    known = json.loads(_answer(engine, "image", "inspect", "--format", "{{json .RepoDigests}}", image))
    repository = image.rpartition(":")[0]
    digests = [text.partition("@")[2] for text in known if text.startswith(f"{repository}@")]
    if len(digests) != 1:
        raise ValueError(f"{engine} does not say under which digest it pushed {image}: found {known}")
    return digests[0]


def _sbom(args: argparse.Namespace) -> None:
    """Write work/sbom/IMAGE.cdx.json: what cyclonedx-py finds installed in the image."""
    out = ROOT / "work" / "sbom"
    out.mkdir(parents=True, exist_ok=True)
    pinned = pins()
    for image in args.images or NAMES:
        given = {"IMAGE": tag(args.registry, image), "BUILD_BASE": base_of(image, pinned)}
        described = f"{given['IMAGE']}-sbom"
        _engine(args.engine, "build", *_build_options(given), "-f", "images/sbom/Dockerfile", "-t", described, ".")
        container = _answer(args.engine, "create", described).strip()
        try:
            _engine(args.engine, "cp", f"{container}:/sbom.json", str(out / f"{image}.cdx.json"))
        finally:
            _answer(args.engine, "rm", container)
        print(f"wrote work/sbom/{image}.cdx.json", flush=True)


def _stage(args: argparse.Namespace) -> None:
    """Run a stage in its image, confined as in a cluster; ``work`` is its /work."""
    declared = ROOT / "components" / args.stage / "component.py"
    if not declared.is_file():
        raise ValueError(f"there is no stage '{args.stage}'")
    found = re.search(r'^    image="(\w+)",', declared.read_text(encoding="utf-8"), re.MULTILINE)
    image = tag(args.registry, found[1] if found else "cpu")
    options = [*CONFINED, "--user", f"{_owner_of(args.work)}:0", "--volume", f"{args.work.resolve()}:/work"]
    options += os.environ.get("STAGE_OPTIONS", "").split()
    command = [args.stage, "--work", "/work", *args.arguments]
    _engine(args.engine, "run", "--rm", *options, image, *command)


def _owner_of(work: Path) -> int:
    """The user that a stage runs as: whoever calls, but never root; ``work`` is made for it when it is not there."""
    if uid := os.getuid():
        work.mkdir(parents=True, exist_ok=True)
        return uid
    if not work.exists():
        work.mkdir(parents=True)
        os.chown(work, USER, 0)
    if not (owner := work.stat().st_uid):
        raise ValueError(f"{work} is root's, and a stage does not run as root: chown -R {USER} {work}")
    return owner


def _lock(_: argparse.Namespace) -> None:
    """Write each image's requirements with the hashes of every file that the package index offers.

    uv finds the index in its own variables. UV_INDEX or UV_FIND_LINKS say where PyTorch's wheels for the CPU lie; no
    other lock file may take one from there.
    """
    plain = {name: value for name, value in os.environ.items() if name not in ("UV_INDEX", "UV_FIND_LINKS")}
    for name, extras in LOCKS.items():
        options = [text for extra in extras for text in ("--extra", extra)]
        for_cpu = name.endswith("-cpu.txt")
        _compile(name, ["pyproject.toml", *options], CPU_TORCH if for_cpu else "", os.environ if for_cpu else plain)
    for name, requirements in TOOLS.items():
        _compile(name, ["-"], "", plain, requirements)


def _compile(name: str, source: list[str], constraint: str, environment: Mapping[str, str], text: str = "") -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(constraint)
        constraints.flush()
        subprocess.run(
            ["uv", "pip", "compile", *source, "--output-file", f"images/{name}", "--quiet",
             "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
             "--no-emit-index-url", "--no-emit-find-links",
             "--constraint", "constraints.txt", "--constraint", constraints.name],
            cwd=ROOT, check=True, env=environment, input=text, text=True,
        )  # fmt: skip


def _engine(engine: str, *arguments: str) -> None:
    subprocess.run([engine, *arguments], cwd=ROOT, check=True)


def _answer(engine: str, *arguments: str) -> str:
    return subprocess.run([engine, *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
