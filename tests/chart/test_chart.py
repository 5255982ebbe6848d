"""What the chart installs: valid, secure, closed, the same bytes each time, and in step with the stages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helm_python
import pytest
import yaml
from fastapi.testclient import TestClient

from components import __version__
from components.core.serving.bundle import read_bundle
from components.deploy.backends.contracts import PORT
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.render import live_name, render
from components.deploy.verify import main
from components.generated.values_schema import update_schema
from components.kubeflow.options import read_images
from components.kubeflow.run_form import NO_GPU, NODE_LABELS, Options, form_fields
from components.recipe.plan import make_plan, resolve_settings
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, STAGES
from components.server.app import build_app
from tests.chart.rendering import CHART, NAMESPACE, insecure, objects, one, problems, rendered
from tests.chart.values_table import README, table
from tests.deploy.bundles import write_bundle

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEDULE = {"name": "nightly", "cron": "0 2 * * *", "parameters": {"corpus_uri": "s3://bucket/documents"}}
EVERYTHING: dict[str, Any] = {
    "imagePullSecrets": ["registry", "123"],
    "runner": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/x"}},
    "serving": {"annotations": {"iam.gke.io/gcp-service-account": "x@y.iam"}, "secrets": ["models-s3"]},
    "deploy": {"subjects": [{"name": "nemotron-embed-runner"}, {"name": "pipeline-runner", "namespace": "kubeflow"}]},
    "secrets": {
        "create": {
            "models-s3": {
                "annotations": {"serving.kserve.io/s3-endpoint": "minio:9000"},
                "data": {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"},
            },
            "nvidia-api-key": {"data": {"NVIDIA_API_KEY": "canary-nvidia"}},
        },
        "external": {
            "store": {"name": "vault", "kind": "ClusterSecretStore"},
            "secrets": {
                "huggingface-token": {"data": {"HF_TOKEN": {"key": "team-a", "property": "hf"}}},
                "ngc-pull": {"data": {"NGC_API_KEY": {"key": "ngc"}}},
            },
        },
    },
    "kfpLauncher": {"create": True, "defaultPipelineRoot": "s3://b/kfp", "providers": {"s3": {"default": {}}}},
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "search"}}}],
        "restrictEgress": True,
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "servingRuntimes": {"enabled": True},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}, "alerts": {"queuedTexts": 10}},
    "kueue": {"enabled": True, "clusterQueue": "gpus"},
    "cache": {"enabled": True, "storageClassName": "filestore"},
    "pipelines": {
        "upload": ["sdg", "prep"],
        "set": {"num_epochs": 2},
        "schedules": [SCHEDULE | {"with": ["champion"], "experiment": "docs", "pipelineRoot": "s3://b/root"}],
    },
    "verify": {"model": "nemotron-embed", "bundle": "s3://bucket/run/deploy_bundle"},
}
CASES = {
    "defaults": {},
    "everything": EVERYTHING,
    **{path.stem: yaml.safe_load(path.read_text()) for path in sorted(CHART.glob("values-*.yaml"))},
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_object_is_one_that_kubernetes_takes(values: dict[str, Any]) -> None:
    found = objects(values)
    for item in found:
        assert list(problems(item)) == []
        assert list(insecure(item)) == []
        assert item["metadata"]["namespace"] == NAMESPACE
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names))


def test_the_checks_find_what_is_wrong() -> None:
    job = one(objects(EVERYTHING), "Job", "nemotron-embed-upload-sdg")
    job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] = False
    assert list(insecure(job)) == ["pipeline: security context"]
    job["spec"]["backofLimit"] = 3
    assert all("backofLimit" in problem for problem in problems(job))
    assert len(list(problems(job))) == 2


def test_helm_has_nothing_to_say_against_it() -> None:
    for values in CASES.values():
        result = helm_python.lint(str(CHART), values, strict=True, namespace=NAMESPACE)
        assert result["errors"] == []
        assert [message["error"] for message in result["messages"]] == ["icon is recommended"]


def test_everything_is_rendered_in_a_dry_run_of_an_install_and_from_a_package(tmp_path: Path) -> None:
    package = helm_python.package(str(CHART), destination=str(tmp_path))
    assert rendered(EVERYTHING, Path(package)) == rendered(EVERYTHING) == rendered(EVERYTHING)
    config = helm_python.Config(kube_apiserver="https://127.0.0.1:1", namespace=NAMESPACE)
    release = config.install(str(CHART), "demo", EVERYTHING, namespace=NAMESPACE, dry_run="client")
    text = json.dumps(release)
    assert "nemotron-embed-runner" in text
    assert "canary" not in rendered(EVERYTHING)["templates/NOTES.txt"]


def test_defaults_install_no_secret_no_job_and_nothing_of_operators() -> None:
    kinds = sorted(item["kind"] for item in objects())
    assert kinds == ["Role", "Role", "RoleBinding", "RoleBinding", "ServiceAccount", "ServiceAccount"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"runer": {}}, "runer", id="unknown"),
        pytest.param({"monitoring": {"enable": True}}, "enable", id="unknown, deeper"),
        pytest.param({"monitoring": {"enabled": "yes"}}, "boolean", id="text for a switch"),
        pytest.param({"images": {"cpu": "registry/cpu:latest"}}, "/images/cpu", id="latest"),
        pytest.param({"images": {"cpu": "registry/cpu"}}, "/images/cpu", id="no tag"),
        pytest.param({"images": {"cpu": "registry:5000/cpu"}}, "/images/cpu", id="a port is no tag"),
        pytest.param({"secrets": {"create": {"my-key": {"data": {}}}}}, "my-key", id="a Secret that no stage reads"),
        pytest.param({"secrets": {"create": {"models-s3": {"data": {"KEY": "x"}}}}}, "KEY", id="a key nobody reads"),
        pytest.param(
            {"secrets": {"create": {"nvidia-api-key": {"data": {"NVIDIA_API_KEY": ""}}}}}, "minLength", id="empty"
        ),
        pytest.param({"pipelines": {"upload": ["train"]}}, "/pipelines/upload", id="unknown stage"),
        pytest.param({"pipelines": {"schedules": [SCHEDULE | {"cron": "daily"}]}}, "cron", id="no cron"),
        pytest.param({"pipelines": {"schedules": [{"name": "x"}]}}, "cron", id="schedule without cron"),
        pytest.param({"pipelines": {"set": {"num_epoch": 2}}}, "num_epoch", id="no setting"),
        pytest.param({"pipelines": {"set": {"num_epochs": 0}}}, "num_epochs", id="a setting out of range"),
        pytest.param({"pipelines": {"set": {"seed": 1}}}, "seed", id="a setting that two stages have"),
        pytest.param(
            {"pipelines": {"schedules": [SCHEDULE | {"parameters": {"finetune_overrides": {"lr": 1}}}]}},
            "finetune_overrides",
            id="an override that is no setting",
        ),
        pytest.param({"pipelines": {"host": "https://user:password@kfp"}}, "host", id="password in the address"),
        pytest.param({"monitoring": {"alerts": {"errorRatio": 5}}}, "errorRatio", id="five times all requests"),
        pytest.param({"kfpLauncher": {"defaultPipelineRoot": "bucket"}}, "defaultPipelineRoot", id="no URI"),
        pytest.param({"kueue": {"enabled": True}}, "kueue.clusterQueue: name the ClusterQueue", id="no ClusterQueue"),
        pytest.param({"cache": {"accessModes": ["ReadOnlyMany"]}}, "accessModes", id="a cache that cannot be filled"),
        pytest.param({"verify": {"model": "x"}}, "verify.bundle: give the URI", id="no bundle"),
        pytest.param(
            {"secrets": {"external": {"secrets": {"nim-api-key": {"data": {"NIM_API_KEY": {"key": "x"}}}}}}},
            "external.store.name: name the store",
            id="no store",
        ),
        pytest.param(
            {
                "secrets": {
                    "create": {"ngc-api": {"data": {"NGC_API_KEY": "x"}}},
                    "external": {
                        "store": {"name": "v"},
                        "secrets": {"ngc-api": {"data": {"NGC_API_KEY": {"key": "x"}}}},
                    },
                }
            },
            "both make ngc-api",
            id="a Secret with two makers",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        rendered(values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "image", ["registry:5000/a/cpu:1.0", f"cpu@sha256:{'0' * 64}", f"ghcr.io/a/cpu:1@sha256:{'0' * 64}", "cpu:latest-1"]
)
def test_images_with_a_fixed_tag_or_digest_are_taken(image: str) -> None:
    assert rendered({"images": {"cpu": image}})


def test_the_schema_is_closed_everywhere() -> None:
    named = [part for part in _objects_of(SCHEMA) if "properties" in part]
    assert len(named) > 20
    assert [part for part in named if part.get("additionalProperties") is not False] == []
    assert set(SCHEMA["properties"]) == set(VALUES) | {"global"}


def _objects_of(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield part
        for value in part.values():
            yield from _objects_of(value)


def test_values_keep_in_step_with_the_stages() -> None:
    assert update_schema((CHART / "values.schema.json").read_text()) == (CHART / "values.schema.json").read_text()
    keys = {"ngc-api": {"NGC_API_KEY"}, "ngc-pull": {"NGC_API_KEY"}}
    for secret in (secret for stage in STAGES for secret in stage.secrets):
        keys.setdefault(secret.name, set()).add(secret.key)
    made = SCHEMA["properties"]["secrets"]["properties"]
    for known in (made["create"], made["external"]["properties"]["secrets"]):
        secrets = known["properties"].items()
        assert {name: set(part["properties"]["data"]["properties"]) for name, part in secrets} == keys
    settings = SCHEMA["properties"]["pipelines"]["properties"]
    assert settings["profile"]["enum"] == sorted(PROFILES)
    form = {field.name for start in NAMES for field in form_fields(make_plan(start), options(start))}
    optional = {f"{name}_uri" for stage in STAGES for name in stage.optional_inputs}
    assert form <= set(settings["schedules"]["items"]["properties"]["parameters"]["properties"])
    assert optional <= set(settings["schedules"]["items"]["properties"]["parameters"]["properties"])
    assert settings["nodeLabels"]["enum"] == [*NODE_LABELS, NO_GPU]
    assert SCHEMA["definitions"]["start"]["enum"] == list(NAMES)
    assert VALUES["images"] == read_images()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__


def options(start: str) -> Options:
    return Options(resolve_settings(make_plan(start).stages, profile_name="llama", values={}), read_images())


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_schema_takes_what_the_stages_take(profile: str) -> None:
    """Every value of a profile, as ``set`` and as an override of a schedule."""
    settings = dict(PROFILES[profile])
    assert rendered({"pipelines": {"set": settings, "upload": ["sdg"]}})
    overrides = {
        f"{stage.name}_overrides": resolve_settings([stage], profile_name=profile, values={})[stage.name].model_dump(
            mode="json"
        )
        for stage in STAGES
    }
    assert rendered({"pipelines": {"schedules": [SCHEDULE | {"parameters": SCHEDULE["parameters"] | overrides}]}})


def test_nobody_may_ask_the_charts_own_pods() -> None:
    found = objects(EVERYTHING)
    spec = one(found, "NetworkPolicy", "nemotron-embed-jobs")["spec"]
    assert (spec["policyTypes"], "ingress" in spec) == (["Ingress"], False)
    jobs = [item["spec"]["template"] for item in found if item["kind"] == "Job"]
    for pod in (*jobs, one(found, "Pod")):
        assert spec["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_what_checkov_is_not_asked_for_has_a_date_and_a_reason() -> None:
    lines = (ROOT / "checkov.yaml").read_text(encoding="utf-8").partition("skip-check:")[2].strip().splitlines()
    for reason, check in zip(lines[::2], lines[1::2], strict=True):
        assert re.match(r" *- CKV\w+$", check)
        assert datetime.now(UTC) - datetime.fromisoformat(reason.split()[1].rstrip(":") + "T00:00Z") < timedelta(366)
        assert len(reason.split()) > 4


def test_jobs_compile_for_the_queue_and_the_cache_and_openshift_gives_the_user() -> None:
    found = objects(EVERYTHING)
    (container,) = one(found, "Job", "nemotron-embed-upload-sdg")["spec"]["template"]["spec"]["containers"]
    given = dict(zip(container["args"][1::2], container["args"][2::2], strict=False))
    assert given["--queue"] == one(found, "LocalQueue")["metadata"]["name"]
    assert given["--cache-claim"] == one(found, "PersistentVolumeClaim")["metadata"]["name"]
    pod = one(objects(EVERYTHING | {"openshift": True}), "Pod")["spec"]["securityContext"]
    assert pod == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_what_is_verified_is_the_service_that_deploy_keeps() -> None:
    (container,) = one(objects(EVERYTHING), "Pod")["spec"]["containers"]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert given == {
        "--url": f"http://{live_name(DeployConfig().service_name)}",
        "--model": DeployConfig().served_model_name,
        "--bundle": "s3://bucket/run/deploy_bundle",
    }
    assert main([*container["args"][:-1], "/nowhere"]) == 2, "its options are those of verify"


def test_the_readme_has_every_value() -> None:
    assert table() in README.read_text(), "python -m tests.chart.values_table writes it"


def test_the_runner_may_do_what_deploy_needs_and_little_else() -> None:
    found = objects()
    rules = one(found, "Role", "nemotron-embed-deploy")["rules"]
    shipped = yaml.safe_load_all((ROOT / "manifests" / "rbac" / "deploy.yaml").read_text())
    assert rules == next(item for item in shipped if item["kind"] == "Role")["rules"]
    own = one(found, "Role", "nemotron-embed-runner")["rules"]
    for rule in (*rules, *own):
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "pods/exec" not in rule["resources"]
        if "secrets" in rule["resources"]:
            assert (rule["verbs"], rule["resourceNames"]) == (["get"], ["mlpipeline-minio-artifact"])
    none = one(objects({"runner": {"artifactStoreSecret": ""}}), "Role", "nemotron-embed-runner")["rules"]
    assert not any("secrets" in rule["resources"] for rule in none)


def test_secrets_hold_what_was_given_and_nothing_else_does() -> None:
    found = objects(EVERYTHING)
    secret = one(found, "Secret", "models-s3")
    assert base64.b64decode(secret["data"]["AWS_SECRET_ACCESS_KEY"]) == b"canary-secret"
    others = json.dumps([item for item in found if item["kind"] != "Secret"])
    assert "canary" not in others
    assert base64.b64encode(b"canary-secret").decode() not in others
    values = {"secrets": {"create": {"ngc-pull": {"data": {"NGC_API_KEY": "key"}}}}}
    pull = one(objects(values), "Secret", "ngc-pull")
    auth = json.loads(base64.b64decode(pull["data"][".dockerconfigjson"]))["auths"]["nvcr.io"]["auth"]
    assert (pull["type"], base64.b64decode(auth)) == ("kubernetes.io/dockerconfigjson", b"$oauthtoken:key")
    template = one(found, "ExternalSecret", "ngc-pull")["spec"]["target"]["template"]
    assert '{{ printf "$oauthtoken:%s" .NGC_API_KEY | b64enc }}' in template["data"][".dockerconfigjson"]


def test_policy_and_monitor_select_the_pods_that_deploy_starts(tmp_path: Path) -> None:
    config = DeployConfig()
    bundle = read_bundle(write_bundle(tmp_path / "b", 1))
    release = render(config, bundle, select_contract(config), model_uri="s3://models/x", namespace=NAMESPACE)
    served = {item["kind"]: item for item in release.objects}
    found = objects(EVERYTHING)
    policy, monitor = one(found, "NetworkPolicy", "nemotron-embed-serving")["spec"], one(found, "PodMonitor")["spec"]
    # KServe copies labels of the InferenceService to its pods.
    labels = served["InferenceService"]["metadata"]["labels"]
    for selector in (policy["podSelector"], monitor["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    runtime = served["ServingRuntime"]["spec"]
    (port,) = runtime["containers"][0]["ports"]
    path = runtime["annotations"]["prometheus.kserve.io/path"]
    assert monitor["podMetricsEndpoints"] == [{"port": port["name"], "path": path}]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}} in (
        policy["ingress"][0]["from"]
    ), "Prometheus would find the pods down"
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": PORT}]


def test_alerts_and_dashboard_ask_for_metrics_that_the_server_has() -> None:
    app = build_app(SimpleNamespace(batch_tokens=64, batches_at_once=1), "x")  # type: ignore[arg-type]
    metrics = TestClient(app).get("/v1/metrics").text
    known = set(re.findall(r"# TYPE (\S+)", metrics))
    (dashboard,) = one(objects(EVERYTHING), "ConfigMap", "nemotron-embed-dashboard")["data"].values()
    drawn = set(re.findall(r"nemotron_embed_[a-z_]+", dashboard))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in drawn} == {
        name for name in known if not name.endswith("_created")
    }
    rules = one(objects(EVERYTHING), "PrometheusRule")["spec"]["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"nemotron_embed_\w+", rule["expr"])}
    assert len(asked) == 3
    assert {name.removesuffix("_bucket") for name in asked} <= known
    assert "> 10" in rules[-1]["expr"]
    assert "/nemotron-embed-serving" in rules[0]["expr"]
    assert one(objects(EVERYTHING), "PodMonitor")["metadata"]["name"] == "nemotron-embed-serving"
