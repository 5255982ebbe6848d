"""What every part of the package relies on: who may import whom, what is declared once, what declarations promise."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl

from components.core.artifacts import ARTIFACTS
from components.core.errors import InputError
from components.core.settings import Settings
from components.core.stage import Stage
from components.recipe.plan import resolve_settings
from components.recipe.stages import NAMES, STAGES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "components"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "kfp", "numpy", "onnxruntime", "kubernetes")
DECLARATIONS = tuple(f"components.{name}.component" for name in NAMES)
# What each folder beside the stages may import; everything may import components.core.
ABOVE = {
    "recipe": DECLARATIONS,
    "generated": ("components.recipe",),
    "command_line": ("components.recipe", "components.generated"),
    "kubeflow": ("components.recipe",),
}
# Folders with folders of their own: no arrows between these may form a circle.
HOUSES = ("", "core", "core.encoder", *NAMES)


def imported(path: Path) -> set[str]:
    """Modules that ``path`` imports anywhere in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if _is_module(name) else str(node.module) for name in inside}
    return found


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name.startswith("components.")}


def allowed(path: Path) -> tuple[str, ...] | None:
    """Prefixes of what ``path`` may import from the package; None for the entry points, which may import all."""
    folder = path.relative_to(PACKAGE).parts[0]
    if folder.endswith(".py"):
        return None
    return ("components.core", f"components.{folder}", *ABOVE.get(folder, ()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    if (prefixes := allowed(path)) is None:
        return
    wrong = {name for name in ours(path) if not any(name == p or name.startswith(p + ".") for p in prefixes)}
    assert not wrong


@pytest.mark.parametrize("house", HOUSES)
def test_no_circle_of_imports(house: str) -> None:
    """Between the folders and files of one folder, whatever lies below a folder counted as the folder."""
    base = ".".join(("components", house)).rstrip(".") + "."
    arrows: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name.startswith(base):
            room = name.removeprefix(base).split(".")[0]
            arrows[room] |= {n.removeprefix(base).split(".")[0] for n in ours(path) if n.startswith(base)} - {room}
    order = TopologicalSorter(arrows)
    order.prepare()


def test_programs_are_reached_only_by_name() -> None:
    programs = {f"components.{name}.program" for name in NAMES}
    assert not {(str(path), name) for path in FILES for name in ours(path) & programs}


def test_only_the_pipeline_imports_kfp() -> None:
    users = [path for path in FILES if any(name.split(".")[0] == "kfp" for name in imported(path))]
    assert users == []
    assert "kfp" in imported(ROOT / "pipeline.py")


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_imports_only_pydantic_and_core(name: str) -> None:
    """And the groups of its settings, where they fill a folder, to which the same applies."""
    settings = {f"components.{name}.settings.{path.stem}": path for path in (PACKAGE / name / "settings").glob("*.py")}
    for path in (PACKAGE / name / "component.py", *settings.values()):
        top = {module.split(".")[0] for module in imported(path)}
        assert top - sys.stdlib_module_names <= {"pydantic", "components"}
        assert all(module.startswith(("components.core", *settings)) for module in ours(path))


@pytest.mark.parametrize(
    "statement",
    [
        "import components.recipe.stages, components.recipe.plan, components.core.kfp_io, components.core.runner",
        "from components.__main__ import main; assert main(['info']) == 0",
    ],
    ids=["stages and plan", "python -m components info"],
)
def test_declarations_load_nothing_heavy(statement: str) -> None:
    program = f"import sys\n{statement}\nprint('loaded', *(set(sys.modules) & set({HEAVY})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "loaded"


def test_kfp_and_the_package_without_extras_are_enough_to_compile(tmp_path: Path) -> None:
    absent = ("torch", "transformers", "onnx", "onnxruntime", "beir", "bm25s", "httpx", "fastapi", "safetensors")
    program = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
        "import pipeline\nsys.exit(pipeline.main(['compile', '--from', 'eval', '--out', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["nemotron-embed-from-eval.yaml"]


def settings() -> Iterator[tuple[str, Stage, type[Settings]]]:
    """Setting, a stage that has it, and the class that declares it: the last one up that still knows it."""
    for stage in STAGES:
        for name in stage.config.model_fields:
            bases = [c for c in stage.config.__mro__ if issubclass(c, Settings) and name in c.model_fields]
            yield name, stage, bases[-1]


def test_a_parameter_means_the_same_in_every_stage_or_is_refused_without_the_stage() -> None:
    meanings: dict[str, list[Any]] = defaultdict(list)
    for name, stage, _ in settings():
        field = stage.config.model_fields[name]
        meanings[name].append((field.annotation, field.default))
    for name in (n for n, found in meanings.items() if any(meaning != found[0] for meaning in found)):
        with pytest.raises(InputError, match=rf"\w+\.{name} or \w+\.{name}"):
            resolve_settings(STAGES, profile_name="llama", values={name: meanings[name][0][1]})


def test_encoder_settings_are_declared_by_one_class() -> None:
    owners: dict[str, set[type]] = defaultdict(set)
    for name, _, owner in settings():
        owners[name].add(owner)
    shared = {name for name, classes in owners.items() if any(c.__name__ == "EncoderConfig" for c in classes)}
    assert {"base_model", "query_prefix", "passage_prefix", "pooling", "query_max_length"} <= shared
    assert all(len(owners[name]) == 1 for name in shared)


def test_every_setting_says_what_it_is() -> None:
    silent = [(stage.name, n) for stage in STAGES for n, f in stage.config.model_fields.items() if not f.description]
    assert silent == []


def test_no_setting_holds_a_secret() -> None:
    """Keys come from the environment: what is set is logged, cached and shown in the UI."""
    words = ("token", "password", "secret", "api_key")
    named = {name for name, *_ in settings() if any(name == w or name.endswith("_" + w) for w in words)}
    assert named == set()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_program_takes_what_the_declaration_promises(stage: Stage) -> None:
    parameters = dict(inspect.signature(stage.program(), eval_str=True).parameters)
    config = parameters.pop("config")
    assert config.annotation is stage.config
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    promised: dict[str, Any] = dict.fromkeys(stage.inputs + stage.outputs, Path)
    promised |= dict.fromkeys(stage.optional_inputs, Path | None) | {f"{name}_uri": str for name in stage.by_uri}
    promised |= dict.fromkeys(stage.replaced_by, Path | None)
    assert {name: p.annotation for name, p in parameters.items()} == promised


def test_an_artifact_is_made_once_and_before_it_is_read() -> None:
    made: list[str] = []
    for stage in STAGES:
        later = {name for other in STAGES[STAGES.index(stage) :] for name in other.outputs}
        assert not later & set(stage.inputs + stage.by_uri), stage.name
        made += [*stage.outputs, stage.metrics_artifact]
    assert len(made) == len(set(made))
    read = {name for stage in STAGES for name in stage.inputs + stage.optional_inputs + stage.by_uri}
    assert set(ARTIFACTS) == set(made) | read


def test_an_artifact_has_one_type_wherever_a_pipeline_names_it() -> None:
    titles: dict[str, set[str]] = defaultdict(set)
    pipelines = sorted((ROOT / "manifests" / "pipelines").glob("*.yaml"))
    assert pipelines
    for path in pipelines:
        for component in next(yaml.safe_load_all(path.read_text(encoding="utf-8")))["components"].values():
            for side in ("inputDefinitions", "outputDefinitions"):
                for name, found in component.get(side, {}).get("artifacts", {}).items():
                    titles[name].add(found["artifactType"]["schemaTitle"])
    known = {name: kinds for name, kinds in titles.items() if name in ARTIFACTS}
    assert known == {name: {getattr(dsl, ARTIFACTS[name].kfp_type).schema_title} for name in known}
    assert {name for stage in STAGES for name in stage.outputs} <= set(known)
