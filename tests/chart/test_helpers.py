"""Named templates are global across a chart and its subcharts: all of ours carry the chart's name."""

from __future__ import annotations

import re

from tests.chart.rendering import CHART

TEMPLATES = {path: path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").rglob("*.*"))}


def _names(keyword: str) -> dict[str, list[str]]:
    found = {path.name: re.findall(rf'{keyword} "([^"]+)"', text) for path, text in TEMPLATES.items()}
    return {name: matches for name, matches in found.items() if matches}


def test_helpers_are_defined_in_one_file_under_the_charts_name() -> None:
    defined = _names("define")
    assert list(defined) == ["_helpers.tpl"]
    assert all(re.fullmatch(r"nemotron-embed\.[a-zA-Z]+", name) for name in defined["_helpers.tpl"])
    assert {name for names in _names("include").values() for name in names} == set(defined["_helpers.tpl"])


def test_the_security_of_pods_and_of_containers_is_written_once() -> None:
    text = "".join(TEMPLATES.values())
    # One securityContext of a pod, one of a container.
    assert len(re.findall(r"^ *securityContext:$", text, re.MULTILINE)) == 2
    assert text.count("seccompProfile:") == text.count("readOnlyRootFilesystem:") == text.count("drop:") == 1
