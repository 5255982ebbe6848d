"""Commands in the documentation are commands that there are: options, settings, fields, targets of make."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from components.command_line.cli import parse
from components.kubeflow.options import choose_run

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "examples/*.md",
        "components/*/README.md",
        "charts/*/README.md",
        "manifests/*.md",
    )
    for path in ROOT.glob(pattern)
)
STARTS = re.compile(
    r"^ {4,}(?:\$ )?((?:[A-Z_]+=\S+ )*(?:python|make)\b.*)$|^\s*(?:- (?:run: )?)?(python pipeline\.py .*)$"
)
INLINE = re.compile(r"`((?:python (?:pipeline\.py|-m components)|make) [^`]+)`")


def commands() -> Iterator[tuple[str, str]]:
    """Page and command, continued lines joined, comments left out."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
        for line in text.splitlines():
            found = STARTS.match(line)
            for command in [found[1] or found[2]] if found else INLINE.findall(line):
                shown = re.split(r"\s(?:#|&&|\|)\s", command)[0].strip()
                yield str(page.relative_to(ROOT)), shown if found else f"{shown} --help"


FOUND = sorted(set(commands()))


def test_there_are_commands_to_check() -> None:
    assert len(FOUND) > 60
    assert {page for page, _ in FOUND} >= {"README.md", "docs/install.md", "docs/ci.md", "docs/recurring.md"}


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_a_command_in_the_documentation_is_one(page: str, command: str) -> None:
    words = _filled_in(shlex.split(command.replace("STAGE", "eval")))
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} - {"--help"} <= targets
    elif words[1] == "pipeline.py":
        _pipeline(words[2:])
    elif words[1:3] == ["-m", "components"]:
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                parse([*words[3:4], "--help"])
        else:
            parse(words[3:])
    elif words[1] == "-m":
        assert words[2] in ("pytest", "venv", "pip") or importlib.util.find_spec(words[2]), words[2]
    else:
        assert (ROOT / words[1]).is_file()


def _filled_in(words: list[str]) -> list[str]:
    """``...`` stands for a value after an option, elsewhere for more of the same."""
    pairs = zip(["", *words], words, strict=False)
    return ["x" if word == "..." else word for before, word in pairs if word != "..." or before.startswith("--")]


def _pipeline(words: list[str]) -> None:
    """Options must be known and required ones there; fields of a run that is complete must be those of its form.

    In running text a command may be named without what it needs.
    """
    if words[-1] == "--help":
        names = [
            word for word in words if word in ("submit", "wait", "compile", "upload", "schedule", "create", "list")
        ]
        with pytest.raises(SystemExit, match="0"):
            pipeline._build_parser().parse_known_args([*names, "--help"])
        return
    args, rest = pipeline._build_parser().parse_known_args(words)
    assert not [word for word in rest if word.startswith("-") or "=" not in word]
    if words[0] == "submit" or words[:2] == ["schedule", "create"]:
        args.parameters += rest
        if args.params is None and args.parameters and not any("..." in word for word in args.parameters):
            choose_run(args)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
