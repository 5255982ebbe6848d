"""Builds, pushes and describes the images with docker, podman or buildah; `make images` and its siblings call it.

Needs Python 3.11 and the engine, no package.
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

from components import __version__
from components.core.pinned_images import PINS, read_pins, stage_images
from images.engine import ROOT, add_options, ask_engine, call_engine, run_command, tag

VALUES = ROOT / "images" / "values.yaml"
# The targets of images/Dockerfile.
NAMES = tuple(stage_images(read_pins()))
VARIANTS = ("cpu", "gpu")
_LABELS = "org.opencontainers.image"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input, else the engine's own."""
    args = _parser().parse_args(argv)
    return run_command(args.run, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="images/build.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, run in (("build", _build), ("push", _push), ("sbom", _sbom)):
        sub = commands.add_parser(name)
        sub.set_defaults(run=run)
        add_options(sub)
        sub.add_argument("--variant", choices=VARIANTS, help="requirements-VARIANT.txt, in images that have one")
        sub.add_argument("--image", dest="images", action="append", choices=NAMES, help="only this one")
    return parser


def pins() -> dict[str, str]:
    """Return what images/pins.env names; an environment variable of the same name wins."""
    return read_pins(PINS, os.environ)


def choose_base(image: str, pinned: Mapping[str, str]) -> str:
    """Return the base that ``image`` is built on."""
    return pinned.get(f"{image.upper()}_BASE") or pinned["BASE"]


def _build(args: argparse.Namespace) -> None:
    pinned = pins()
    git = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    labels = {"version": __version__, "revision": revision or "unknown", "licenses": "Apache-2.0"}
    label_options = [text for name, value in labels.items() for text in ("--label", f"{_LABELS}.{name}={value}")]
    # The same arguments for every target, so that an engine that builds all of them finds them in its cache.
    arguments = {name: value for name, value in pinned.items() if name.endswith("BASE")} | _variant(args.variant)
    options = [*_build_options(arguments), *label_options, "-f", "images/Dockerfile"]
    for image in args.images or NAMES:
        started, name = time.monotonic(), tag(args.registry, image)
        call_engine(args.engine, "build", *options, "--target", image, "-t", name, ".")
        print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _variant(variant: str | None) -> dict[str, str]:
    """Return the build arguments that choose the lock files of ``variant``, for the images that have such a file."""
    file = f"requirements-{variant}.txt"
    return {f"{name.upper()}_REQUIREMENTS": file for name in NAMES if (ROOT / "images" / name / file).is_file()}


def _build_options(named: Mapping[str, str]) -> list[str]:
    """Return the options of a build: the arguments ``named``, and those of this machine, which reach no image."""
    arguments = [f"{name}={value}" for name, value in named.items()]
    if base := os.environ.get("BUILD_BASE"):
        arguments += [f"BUILD_BASE={base}", f"EXPORT_BUILD_BASE={base}"]
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
    lines = ["# Written by `make push`: helm install ... --values images/values.yaml", "images:"]
    lines += [f"  {name}: {image}" for name, image in stage_images(read_pins(PINS)).items()]
    VALUES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _push_one(engine: str, image: str) -> str:
    if Path(engine).name in ("podman", "buildah"):
        with tempfile.NamedTemporaryFile("r") as file:
            call_engine(engine, "push", "--digestfile", file.name, image)
            return file.read().strip()
    call_engine(engine, "push", image)
    known = json.loads(ask_engine(engine, "image", "inspect", "--format", "{{json .RepoDigests}}", image))
    repository = image.rpartition(":")[0]
    digests = [text.partition("@")[2] for text in known if text.startswith(f"{repository}@")]
    if len(digests) != 1:
        raise ValueError(f"{engine} does not say under which digest it pushed {image}: found {known}")
    return str(digests[0])


def _sbom(args: argparse.Namespace) -> None:
    """Write work/sbom/IMAGE.cdx.json: what cyclonedx-py finds installed in the image."""
    out = ROOT / "work" / "sbom"
    out.mkdir(parents=True, exist_ok=True)
    pinned = pins()
    for image in args.images or NAMES:
        arguments = {"IMAGE": tag(args.registry, image), "BUILD_BASE": choose_base(image, pinned)}
        described = f"{arguments['IMAGE']}-sbom"
        options = _build_options(arguments)
        call_engine(args.engine, "build", *options, "-f", "images/sbom/Dockerfile", "-t", described, ".")
        container = ask_engine(args.engine, "create", described).strip()
        try:
            call_engine(args.engine, "cp", f"{container}:/sbom.json", str(out / f"{image}.cdx.json"))
        finally:
            ask_engine(args.engine, "rm", container)
        print(f"wrote work/sbom/{image}.cdx.json", flush=True)


if __name__ == "__main__":
    sys.exit(main())
