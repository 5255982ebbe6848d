"""Pages of the documentation: a short README, lines that fit, links to headings that exist, pictures that are small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "*/*.md", "components/*/README.md", "charts/*/README.md", "tests/data/*/README.md")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith((".", "work", "build"))
)
LONGEST_README = 150
LONGEST_LINE = 120
LARGEST_PICTURES = 300_000
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(page: Path) -> Iterator[str]:
    """The lines of ``page`` outside of fenced code."""
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield line


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of ``page``."""
    headings = [line.lstrip("#").strip() for line in prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@each_page
def test_lines_fit_outside_of_tables(page: Path) -> None:
    assert [line for line in prose(page) if len(line) > LONGEST_LINE and not line.lstrip().startswith("|")] == []


@each_page
def test_links_to_headings_lead_to_one(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.suffix != ".md" or anchor in anchors(linked), f"{target}#{anchor}"


def test_every_page_under_docs_is_in_the_table_of_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/README.md"} <= linked


def test_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")) <= (
        LARGEST_PICTURES
    )


def test_modules_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", text))
    modules = [f"/{path.relative_to(ROOT)}" for path in (*ROOT.glob("*.py"), *ROOT.glob("[ct]*/**/*.py"))]
    assert len(named) > 40
    assert {name for name in named if not any(module.endswith(f"/{name}") for module in modules)} == set()
