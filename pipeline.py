"""The stages as Kubeflow pipelines, one for each stage to start from, derived from the stages' declarations.

python pipeline.py compile            write manifests/pipelines/*.yaml
python pipeline.py compile --check    exit 2 when a committed file is not what would be written
python pipeline.py submit             start a run on a Kubeflow Pipelines server, and follow it with --wait
python pipeline.py wait RUN_ID        follow a run that was started
python pipeline.py upload             make a version of the pipeline on the server
python pipeline.py schedule           create, list, pause, resume or delete recurring runs
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import kfp
from kfp import compiler, dsl, kubernetes
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, ServiceAccountTokenVolumeCredentials

from components import __version__
from components.core.artifacts import ARTIFACTS
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError, StageError, Transient
from components.core.stage import Stage
from components.kubeflow.commands import ServerCommands
from components.kubeflow.errors import translate_errors
from components.kubeflow.options import add_command, add_compile_options, plan_pipelines, read_images
from components.kubeflow.run_form import (
    GPU_COUNT,
    NO_DEFAULT,
    Options,
    form_fields,
    kfp_type,
    kfp_value,
    override_inputs,
    override_parameter,
)
from components.kubeflow.server import Server
from components.recipe.plan import Plan, form_settings, pipeline_name
from components.recipe.stages import NAMES, STAGES

ROOT = Path(__file__).resolve().parent
PIPELINES = ROOT / "manifests" / "pipelines"

CACHE = "/cache"


def make_component(stage: Stage, image: str, without: Iterable[str] = ()) -> Callable[..., dsl.PipelineTask]:
    """Make the KFP component of ``stage``: its artifacts, the settings of the run form, and overrides for all others.

    ``without`` are inputs that a setting replaces.
    """
    inputs = tuple(name for name in stage.inputs if name not in without)
    required = [(name, dsl.Input[_artifact_class(name)], NO_DEFAULT) for name in inputs]
    required += [(f"{name}_uri", str, NO_DEFAULT) for name in stage.by_uri]
    required += [(name, dsl.Output[_artifact_class(name)], NO_DEFAULT) for name in _outputs(stage)]
    required += [(name, dsl.OutputPath(kind), NO_DEFAULT) for name, kind in stage.results.items()]
    optional = [
        (name, kfp_type(field.annotation), kfp_value(field.annotation, field.default))
        for name, field in form_settings([stage]).items()
    ]
    optional += [(name, dict, {}) for name in override_inputs(stage)]
    if stage.node.gpu:
        # The stage does not look at it: kfp 2.17 hands into a group only what some task in it takes as an input, and
        # the task's GPU limit refers to it.
        optional.append((GPU_COUNT, str, "1"))
    optional += [(name, dsl.Input[_artifact_class(name)] | None, None) for name in stage.optional_inputs]

    def spec(*_: Any) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image, command=["python", "-m", "components", stage.name], args=["--executor-input", "{{$}}"]
        )

    descriptions = {name: field.description or "" for name, field in form_settings([stage]).items()}
    descriptions |= {name: ARTIFACTS[name].summary for name in (*inputs, *stage.optional_inputs, *_outputs(stage))}
    function = _with_signature(spec, stage.name, required + optional)
    function.__doc__ = "\n".join(
        [f"{stage.summary}.", "", "Args:", *(f"    {n}: {d}" for n, d in descriptions.items())]
    )
    component: Callable[..., dsl.PipelineTask] = dsl.container_component(function)
    return component


def build_pipeline(plan: Plan, options: Options) -> Any:
    """Build the pipeline of ``plan``, a GraphComponent of kfp."""
    parameters = [(field.name, field.kind, field.default) for field in form_fields(plan, options)]

    def flow(*channels: Any) -> None:
        fields = dict(zip((name for name, *_ in parameters), channels, strict=True))
        artifacts = {name: _import_artifact(name, fields[f"{name}_uri"]) for name in plan.required_artifacts}
        artifacts |= {f"{name}_uri": fields[f"{name}_uri"] for name in plan.required_artifacts + plan.uri_artifacts}
        with contextlib.ExitStack() as gates:
            for stage in plan.stages:
                artifacts |= _add_task(stage, options, fields, artifacts)
                if stage.gate and plan.after(stage):
                    condition = artifacts[stage.gate.result] == True  # noqa: E712 (kfp overloads ==)
                    gates.enter_context(dsl.If(condition, name=stage.gate.name))

    stages = ", ".join(stage.name for stage in plan.stages)
    description = f"Fine-tune an embedding model on documents of your own: {stages}."
    return dsl.pipeline(name=pipeline_name(plan), description=description)(_with_signature(flow, "flow", parameters))


def compile_plan(plan: Plan, options: Options, objects: compiler.KubernetesManifestOptions | None = None) -> str:
    """Compile the pipeline of ``plan`` to YAML, the same bytes for the same stages and options.

    With ``objects`` it is the Pipeline and PipelineVersion that a cluster with KFP's Kubernetes API takes. kfp writes a
    comment with the parameters, in an order that changes from run to run, before the YAML: ours stands there instead.
    """
    manifest = {"kubernetes_manifest_format": objects is not None, "kubernetes_manifest_options": objects}
    title = f"{pipeline_name(plan)} {__version__}: {', '.join(stage.name for stage in plan.stages)}."
    return _compile_to_yaml(build_pipeline(plan, options), title, **manifest)


def compile_component(stage: Stage, image: str) -> str:
    """Compile the component of ``stage`` to YAML, for ``kfp.components.load_component_from_file`` and ``_from_url``."""
    return _compile_to_yaml(make_component(stage, image), f"{stage.name} {__version__}: {stage.summary}.")


def _compile_to_yaml(component: Any, title: str, **manifest: Any) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(component, str(path), **manifest)
        body = path.read_text(encoding="utf-8")
    lines = body.splitlines()
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    header = "# Written by `python pipeline.py compile`; change the stages' declarations, not this file."
    return "\n".join([f"# {title}", header, *lines]) + "\n"


def compile_objects(plan: Plan, options: Options, *, namespace: str) -> str:
    """Compile ``plan`` to the objects Pipeline and PipelineVersion, for GitOps.

    A version's content cannot be changed on the cluster: its name carries a digest of it.
    """
    name = pipeline_name(plan)
    digest = hashlib.sha256(compile_plan(plan, options).encode()).hexdigest()[:10]
    manifest = compiler.KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_version_name=f"{name}-{__version__.replace('.', '-')}-{digest}",
        pipeline_version_display_name=f"{__version__} ({digest})",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    return compile_plan(plan, options, manifest)


def _add_task(
    stage: Stage, options: Options, fields: Mapping[str, Any], artifacts: Mapping[str, Any]
) -> dict[str, Any]:
    """Add the task of ``stage``; return its outputs by the name of artifact and output parameter."""
    without = [name for name in stage.inputs if name not in artifacts]
    arguments = {name: artifacts[name] for name in stage.inputs if name in artifacts}
    arguments |= {name: artifacts[name] for name in stage.optional_inputs if name in artifacts}
    arguments |= {f"{name}_uri": artifacts[f"{name}_uri"] for name in stage.by_uri}
    # Every parameter is passed, also unchanged ones: kfp 2.17's driver knows no defaults of omitted ones.
    arguments |= {name: fields[name] for name in form_settings([stage])}
    arguments |= {name: fields[override_parameter(stage, name)] for name in override_inputs(stage)}
    if stage.node.gpu:
        arguments |= {GPU_COUNT: fields.get(f"{stage.name}_{GPU_COUNT}", "0")}
    task = make_component(stage, options.images[stage.image], without)(**arguments)
    task.set_display_name(f"{stage.name}: {stage.summary}")
    # What a stage fetches by itself may be new although its address is not: no key of a cache tells.
    task.set_caching_options(stage.cache and not without)
    _set_node(task, stage, options, fields)
    for secret in stage.secrets:
        kubernetes.use_secret_as_env(
            task, secret_name=secret.name, secret_key_to_env={secret.key: secret.env}, optional=True
        )
    if stage.retries:
        task.set_retry(stage.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="600s")
    return {name: task.outputs[name] for name in (*stage.outputs, *stage.results)}


def _set_node(task: dsl.PipelineTask, stage: Stage, options: Options, fields: Mapping[str, Any]) -> None:
    """Set resources, node selector and volumes of the task of ``stage``."""
    node = stage.node
    task.set_cpu_request(node.cpu).set_cpu_limit(node.cpu).set_memory_request(node.memory).set_memory_limit(node.memory)
    # KFP adds the rest of the restricted pod standard by itself. No user: OpenShift gives each namespace its own.
    kubernetes.set_security_context(task, run_as_non_root=True)
    if node.shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=node.shared_memory
        )
    if options.cache_claim and (stage.node.gpu or issubclass(stage.config, EncoderConfig)):
        kubernetes.mount_pvc(task, pvc_name=options.cache_claim, mount_path=CACHE)
        task.set_env_variable("HF_HOME", f"{CACHE}/huggingface")
    if not options.asks_for_gpu(stage):
        return
    if options.queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", options.queue)
    task.set_accelerator_type("nvidia.com/gpu")
    task.set_accelerator_limit(fields[f"{stage.name}_{GPU_COUNT}"])
    kubernetes.add_node_selector_json(task, fields[f"{stage.name}_node_selector"])
    kubernetes.add_toleration_json(task, fields["gpu_tolerations"])


def _import_artifact(name: str, uri: Any) -> Any:
    # reimport: the bytes behind a URI may be new although the URI is not.
    # No display name: KFP's importer records its execution under the display name, and the driver of the next task
    # looks for the name of the task and finds nothing (KFP 2.14 to 2.17).
    return dsl.importer(artifact_uri=uri, artifact_class=_artifact_class(name), reimport=True).output


def _outputs(stage: Stage) -> tuple[str, ...]:
    return (*stage.outputs, stage.metrics_artifact)


def _artifact_class(name: str) -> Any:
    return getattr(dsl, ARTIFACTS[name].kfp_type)


def _with_signature(
    function: Callable[..., Any], name: str, parameters: Iterable[tuple[str, Any, Any]]
) -> Callable[..., Any]:
    """Return ``function`` with the signature that kfp reads, as if its parameters were written out."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(n, positional, annotation=kind, default=default) for n, kind, default in parameters]
    )
    setattr(function, "__signature__", signature)  # noqa: B010 (a Callable has no such attribute for mypy)
    function.__name__ = name
    return function


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input or a stale file, 3 a person must act, 75 try again."""
    parser = _build_parser()
    # argparse takes positional arguments in one run only; NAME=VALUE may stand anywhere.
    args, rest = parser.parse_known_args(argv)
    if unknown := [text for text in rest if text.startswith("-") or "=" not in text or "parameters" not in args]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.parameters += rest
    logging.basicConfig(format="%(message)s")
    # Each of its tries is a line; the SDK sets the level of urllib3 itself again.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    try:
        exit_code: int = args.run(args)
        return exit_code
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; a run that was started goes on", file=sys.stderr)
        return Transient.exit_code


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipeline.py", description="Stages as Kubeflow pipelines.")
    commands = parser.add_subparsers(dest="command", required=True)
    sub = add_command(commands, "compile", _compile, "Write the pipelines as YAML")
    sub.add_argument("--from", dest="starts", action="append", choices=NAMES, help="only this start (default: each)")
    add_compile_options(sub)
    sub.add_argument("--out", type=Path, default=PIPELINES, metavar="DIR", help="default: manifests/pipelines")
    sub.add_argument("--check", action="store_true", help="write nothing; exit 2 when a file in DIR differs")
    sub.add_argument(
        "--format",
        choices=["kfp", "kubernetes"],
        default="kfp",
        help="kubernetes writes Pipeline and PipelineVersion objects for GitOps, KFP 2.17 with its Kubernetes store",
    )
    sub.add_argument("--namespace", default="kubeflow", help="of those objects (default: kubeflow)")
    ServerCommands(compile_plan, _connect).add_to(commands)
    return parser


def _compile(args: argparse.Namespace) -> int:
    images = read_images()
    files = {}
    for plan, configs in plan_pipelines(args):
        options = Options(configs, images, args.node_labels, args.queue, args.cache_claim)
        text = (
            compile_plan(plan, options)
            if args.format == "kfp"
            else compile_objects(plan, options, namespace=args.namespace)
        )
        files[args.out / f"{pipeline_name(plan)}.yaml"] = text
    if args.out == PIPELINES and not args.starts:
        # For pipelines of other people; a component does not depend on the options.
        files |= {
            ROOT / "components" / s.name / "component.yaml": compile_component(s, images[s.image]) for s in STAGES
        }
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if not args.check:
        for path, text in files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
            print(path)
    elif stale:
        raise InputError(f"not what would be compiled: {', '.join(map(str, stale))}: run `python pipeline.py compile`")
    return 0


def _connect(args: argparse.Namespace) -> Server:
    """Credentials come from the environment only: arguments are seen by every user of the machine."""
    with warnings.catch_warnings(), translate_errors("connecting"):
        warnings.simplefilter("ignore")
        client = kfp.Client(
            host=args.host,
            namespace=args.namespace or "kubeflow",
            existing_token=os.environ.get("KFP_TOKEN"),
            cookies=os.environ.get("KFP_COOKIES"),
            # With --host the SDK does not look for a pod's token by itself.
            credentials=ServiceAccountTokenVolumeCredentials() if KF_PIPELINES_SA_TOKEN_ENV in os.environ else None,
        )
    return Server(client, args.namespace)


if __name__ == "__main__":
    sys.exit(main())
