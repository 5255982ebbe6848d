"""Reads images/Dockerfile: its stages, and what of the checkout each target holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[2] / "images" / "Dockerfile"
HOME = "/opt/nemotron-embed"


@dataclass(frozen=True)
class BuildStage:
    """One FROM and its instructions; ``base`` is an argument or an earlier stage."""

    base: str
    instructions: list[tuple[str, str]]

    def values(self, keyword: str) -> list[str]:
        """Return what follows ``keyword``, in order."""
        return [value for name, value in self.instructions if name == keyword]


def read_stages(path: Path = DOCKERFILE) -> dict[str, BuildStage]:
    """Return the stages by name, in order."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not re.match(r"\s*#|\s*$", line)]
    stages: dict[str, BuildStage] = {}
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        keyword, _, value = line.partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages[name] = BuildStage(base, [])
        elif stages:
            stages[name].instructions.append((keyword, value))
    return stages


def ancestry(target: str) -> list[BuildStage]:
    """Return ``target`` and the stages that it is built on, nearest first."""
    stages, chain = read_stages(), []
    while target in stages:
        chain.append(stages[target])
        target = stages[target].base
    return chain


def copies(target: str) -> list[tuple[str, str]]:
    """Return what of the checkout lies under /opt/nemotron-embed in ``target``: pairs of source and place."""
    stages, pairs = read_stages(), []
    for value in stages[target].values("COPY"):
        *sources, place = re.sub(r"--from=\S+ ", "", value).split()
        if origin := re.match(r"--from=(\S+)", value):
            pairs += [pair for pair in copies(origin[1]) if sources == [HOME] == [place]]
        elif place.startswith(HOME):
            pairs += [(source, place) for source in sources]
    return pairs
