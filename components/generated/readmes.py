"""Files written from the declarations: tables of READMEs, Kubeflow's metadata.yaml, the schema of the chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.core.artifacts import ARTIFACTS
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.settings import is_in_form
from components.core.stage import Stage
from components.generated import values_schema
from components.recipe.describe import format_type, format_value
from components.recipe.plan import values_for
from components.recipe.profiles import profile
from components.recipe.stages import STAGES

PACKAGE = Path(__file__).resolve().parents[1]
VALUES_SCHEMA = PACKAGE.parent / "charts" / "nemotron-embed" / "values.schema.json"
BEGIN, END = "<!-- generated -->", "<!-- /generated -->"
# When all stages were last seen working together; Kubeflow's rules for components allow a year.
LAST_VERIFIED = "2026-11-23T00:00:00Z"


def write(*, check: bool = False) -> None:
    """Write every README's tables, every metadata.yaml and the schema of the chart's values.

    Raises InputError, and writes nothing, when ``check`` is set and a file is not what would be written.
    """
    files = {path: text for stage in STAGES for path, text in _render_files(stage).items()}
    if VALUES_SCHEMA.is_file():
        files[VALUES_SCHEMA] = values_schema.update_schema(VALUES_SCHEMA.read_text(encoding="utf-8"))
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(PACKAGE.parent)) for path in stale)
        raise InputError(f"not what the declarations say: {names}: run `python -m components docs`")
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
        print(path.relative_to(PACKAGE.parent))


def _render_files(stage: Stage) -> dict[Path, str]:
    readme = PACKAGE / stage.name / "README.md"
    return {readme: _render_readme(stage, readme), readme.with_name("metadata.yaml"): render_metadata(stage)}


def _render_readme(stage: Stage, path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"{path} has no lines {BEGIN} and {END}: put them where the tables belong")
    return f"{before}{BEGIN}\n\n{render_tables(stage)}\n\n{END}{after}"


def render_metadata(stage: Stage) -> str:
    """Return ``metadata.yaml`` as the repository kubeflow/pipelines-components asks for it, keys in its order."""
    content = {
        "name": stage.name,
        "stability": "alpha",
        "dependencies": {"kubeflow": [{"name": "Pipelines", "version": ">=2.17.0"}]},
        "tags": ["embedding", "retrieval", stage.name],
        "lastVerified": LAST_VERIFIED,
    }
    return yaml.safe_dump(content, sort_keys=False)


def render_tables(stage: Stage) -> str:
    """Return the stage's artifacts and settings as Markdown tables."""
    parts = ["## Interface", _interface_table(stage), "## Settings", _settings_table(stage, _names_of_stage(stage))]
    if issubclass(stage.config, EncoderConfig):
        shared = ", ".join(s.name for s in STAGES if issubclass(s.config, EncoderConfig))
        parts += [
            f"Settings of the encoder, the same in {shared}:",
            _settings_table(stage, list(EncoderConfig.model_fields)),
        ]
    return "\n\n".join(parts)


def _interface_table(stage: Stage) -> str:
    rows = [("input", name) for name in stage.inputs]
    rows += [("input, optional", name) for name in stage.optional_inputs]
    rows += [("input, as URI", name) for name in stage.by_uri]
    rows += [("output", name) for name in (*stage.outputs, stage.metrics_artifact)]
    lines = [(kind, f"`{name}`", ARTIFACTS[name].kfp_type, ARTIFACTS[name].summary) for kind, name in rows]
    lines += [("output parameter", f"`{name}`", kind.__name__, "") for name, kind in stage.results.items()]
    return _table(("", "name", "type", "what"), lines)


def _names_of_stage(stage: Stage) -> list[str]:
    shared = EncoderConfig.model_fields if issubclass(stage.config, EncoderConfig) else {}
    return [name for name in stage.config.model_fields if name not in shared]


def _settings_table(stage: Stage, names: list[str]) -> str:
    """Return the table of the settings ``names``, with the default of the profile ``small`` where it differs."""
    small = values_for(stage, profile("small"))
    fields = [stage.config.model_fields[name] for name in names]
    lines = []
    for name, field in zip(names, fields, strict=True):
        default = f"`{format_value(field.default)}`"
        if name in small and small[name] != field.default:
            default += f" (small: `{format_value(small[name])}`)"
        mark = " \\*" if is_in_form(field) else ""
        lines.append((f"`{name}`{mark}", format_type(field.annotation), default, field.description or ""))
    table = _table(("setting", "type", "default", "meaning"), lines)
    return f"{table}\n\n\\* in the run form of the Kubeflow UI." if any(map(is_in_form, fields)) else table


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
