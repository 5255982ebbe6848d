"""What is generated about the stages: Markdown that renders, and Kubeflow's metadata."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import yaml

from components.__main__ import main
from components.core.stage import Stage
from components.generated import readmes
from components.recipe.stages import STAGES

each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@each_stage
def test_every_setting_and_artifact_is_in_the_tables(stage: Stage) -> None:
    rows = re.findall(r"^\| `(\w+)`|^\| \w[^|]* \| `(\w+)`", readmes.render_tables(stage), flags=re.MULTILINE)
    named = {first or second for first, second in rows}
    assert named == {
        *stage.config.model_fields,
        *stage.inputs,
        *stage.optional_inputs,
        *stage.by_uri,
        *stage.outputs,
        stage.metrics_artifact,
        *stage.results,
    }


@each_stage
def test_tables_have_as_many_cells_in_each_row_as_in_their_header(stage: Stage) -> None:
    for table in re.findall(r"(?:^\|.*\n?)+", readmes.render_tables(stage), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@each_stage
def test_metadata_is_what_kubeflow_asks_for(stage: Stage) -> None:
    content = yaml.safe_load(readmes.render_metadata(stage))
    assert list(content) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert content["stability"] in ("experimental", "alpha", "beta", "stable")
    assert content["dependencies"]["kubeflow"] == [{"name": "Pipelines", "version": ">=2.17.0"}]
    verified = datetime.datetime.fromisoformat(content["lastVerified"])
    assert verified.tzinfo


def test_a_stale_file_is_named_and_left_alone_and_the_next_write_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readmes, "PACKAGE", tmp_path / "components")
    for stage in STAGES:
        readme = tmp_path / "components" / stage.name / "README.md"
        readme.parent.mkdir(parents=True)
        readme.write_text(f"# {stage.name}\n\n{readmes.BEGIN}\n{readmes.END}\n\nby hand\n", encoding="utf-8")
    assert main(["docs", "--check"]) == 2
    assert "components/sdg/README.md" in capsys.readouterr().err
    assert not list(tmp_path.rglob("metadata.yaml"))
    assert main(["docs"]) == 0
    assert main(["docs", "--check"]) == 0
    text = (tmp_path / "components" / "prep" / "README.md").read_text(encoding="utf-8")
    assert "`hard_neg_margin`" in text
    assert text.endswith(f"{readmes.END}\n\nby hand\n")


def test_a_readme_without_a_place_for_the_tables_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readmes, "PACKAGE", tmp_path)
    (tmp_path / "sdg").mkdir()
    (tmp_path / "sdg" / "README.md").write_text("# sdg\n", encoding="utf-8")
    assert main(["docs"]) == 2
    assert readmes.BEGIN in capsys.readouterr().err
