"""The folders of the project and who imports whom, computed from the code."""

from __future__ import annotations

import ast
from pathlib import Path

from components.recipe.stages import NAMES
from docs.drawing.svg import Box, Drawing

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "components"
STAGES, ENTRY = "stages", "components/__main__.py"
_HEIGHT, _GAP, _LEFT, _WIDTH = 52, 46, 24, 940
# What a box says below its name.
PURPOSES = {
    ENTRY: "python -m components",
    "pipeline.py": "compile, submit, upload, schedule",
    "command_line": "runs on this machine",
    "kubeflow": "run form, client of the server",
    "generated": "tables, schemas",
    "recipe": "order of stages, profiles, plans",
    "server": "the embedding server",
}


def read_imports() -> dict[str, set[str]]:
    """Return for each folder (the six stages are one) the folders that its modules import, and core."""
    imports: dict[str, set[str]] = {}
    for path in sorted([*PACKAGE.rglob("*.py"), ROOT / "pipeline.py"]):
        if path != PACKAGE / "__init__.py":
            owner = _folder(".".join(path.relative_to(ROOT).with_suffix("").parts))
            imports.setdefault(owner, set()).update(_imported_folders(path) - {owner})
    return imports


def _imported_folders(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "components":
            modules |= {f"components.{alias.name}" for alias in node.names if (PACKAGE / alias.name).is_dir()}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {_folder(module) for module in modules if module.startswith("components.")}


def _folder(module: str) -> str:
    """Return the box that ``module`` belongs to."""
    if module == "pipeline":
        return "pipeline.py"
    folder = module.split(".")[1]
    if folder in NAMES:
        return STAGES
    return ENTRY if folder == "__main__" else folder


def _levels(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the folders by level: whoever imports stands above what it imports."""
    depth: dict[str, int] = {}

    def measure(folder: str) -> int:
        if folder not in depth:
            depth[folder] = 1 + max((measure(name) for name in imports.get(folder, ())), default=-1)
        return depth[folder]

    for folder in imports:
        measure(folder)
    highest = max(depth.values())
    levels: list[list[str]] = [[] for _ in range(highest + 1)]
    for folder, level in sorted(depth.items()):
        levels[highest - level].append(folder)
    return levels


def _implied(imports: dict[str, set[str]], folder: str) -> set[str]:
    """Return what ``folder`` reaches through the folders that it imports as well."""
    below: set[str] = set()
    waiting = list(imports[folder])
    while waiting:
        reached = imports.get(waiting.pop(), set()) - below
        below |= reached
        waiting += reached
    return below


def draw() -> Drawing:
    """Draw the levels from top to bottom, without the arrows that others imply; core is a bar below all of them."""
    imports = read_imports()
    levels = _levels(imports)
    drawing = Drawing(_WIDTH, 48 - _GAP + len(levels) * (_HEIGHT + _GAP), "Folders and the direction of imports")
    boxes: dict[str, Box] = {}
    for number, names in enumerate(levels):
        widths = [760.0 if name in ("core",) else 470.0 if name == STAGES else 230.0 for name in names]
        left = (_WIDTH - sum(widths) - 60 * (len(names) - 1)) / 2
        for name, width in zip(names, widths, strict=True):
            boxes[name] = Box(left, 24 + number * (_HEIGHT + _GAP), width, _HEIGHT)
            left += width + 60
    for folder, targets in imports.items():
        for target in sorted(targets - _implied(imports, folder)):
            start, end = boxes[folder], boxes[target]
            x = min(max(start.middle[0], end.left + 36), end.right - 36)
            drawing.arrow((start.middle[0], start.bottom), (x, end.top - 2))
    for name, box in boxes.items():
        if name == STAGES:
            drawing.box(box, [" · ".join(NAMES), "the stages: component.py declares, program.py does the work"])
        elif name == "core":
            inner = sorted(path.parent.name for path in (PACKAGE / "core").glob("*/__init__.py"))
            drawing.box(box, ["core: everything may import it", ", ".join(inner)], style="soft")
        else:
            drawing.box(box, [name, PURPOSES.get(name, "")], style="soft" if name.endswith(".py") else "box")
    return drawing
