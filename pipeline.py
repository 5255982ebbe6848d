"""The stages as Kubeflow pipelines, one for each stage to start from, derived from the stages' declarations.

python pipeline.py compile            write manifests/pipelines/*.yaml
python pipeline.py compile --check    exit 2 when a committed file is not what would be written
python pipeline.py submit             start a run on a Kubeflow Pipelines server, and follow it with --wait
python pipeline.py upload             make a version of the pipeline on the server
python pipeline.py schedule           create, list, pause, resume or delete recurring runs
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import inspect
import logging
import os
import re
import sys
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp
import yaml
from kfp import compiler, dsl, kubernetes
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, ServiceAccountTokenVolumeCredentials

from components import __version__
from components.core.artifacts import ARTIFACTS
from components.core.encoder.config import EncoderConfig
from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.history import History
from components.core.kfp_io import ENCODER_OVERRIDES, OVERRIDES, settings_of
from components.core.settings import Settings, is_optional, parse_text
from components.core.stage import Stage
from components.kubeflow import Launch, Server, asking
from components.plan import Plan, find_setting, form_settings, make_plan, resolve, values_for
from components.profiles import PROFILES
from components.stages import NAMES, STAGES

ROOT = Path(__file__).resolve().parent
PIPELINES = ROOT / "manifests" / "pipelines"
PINS = ROOT / "images" / "pins.env"

# The node label that names a GPU product: GPU feature discovery of NVIDIA's GPU operator, GKE, EKS with Karpenter.
NODE_LABELS: dict[str, dict[str, dict[str, str]]] = {
    "gfd": {
        "A100": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "H100": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    },
    "gke": {
        "A100": {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"},
        "H100": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    },
    "eks": {
        "A100": {"karpenter.k8s.aws/instance-gpu-name": "a100"},
        "H100": {"karpenter.k8s.aws/instance-gpu-name": "h100"},
    },
}
NO_GPU = "none"
SERVING_NODE_SELECTOR = "serving_node_selector"
GPU_COUNT = "gpu_count"
GPU_TOLERATIONS = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
CACHE = "/cache"
NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True)
class Options:
    """What is decided when a pipeline is compiled; ``configs`` are the settings of each of its stages.

    ``queue`` is the Kueue LocalQueue in which GPU stages wait; ``cache_claim`` the volume that keeps base models.
    """

    configs: Mapping[str, Settings]
    images: Mapping[str, str]
    node_labels: str = "gfd"
    queue: str | None = None
    cache_claim: str | None = None

    def asks_for_gpu(self, stage: Stage) -> bool:
        """Whether the task of ``stage`` asks for a GPU node."""
        return stage.node.gpu is not None and self.node_labels != NO_GPU


def images() -> dict[str, str]:
    """Image of each kind (``cpu``, ``gpu``, ...): images/pins.env, or environment variables of the same names.

    Raises InputError for an image without tag or digest, or with the tag latest.
    """
    found = {}
    for line in PINS.read_text(encoding="utf-8").splitlines():
        name, equals, pinned = line.strip().partition("=")
        if not name.endswith("_IMAGE") or not equals:
            continue
        image = os.environ.get(name, pinned)
        if not re.fullmatch(r"[^\s:@]+(:\d+)?[^\s:@]*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image) or not re.search(
            r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", image
        ):
            raise InputError(f"{name} = {image}: name an image with a fixed tag or digest, never latest")
        found[name.removesuffix("_IMAGE").lower()] = image
    return found


def component(stage: Stage, image: str, left_out: Iterable[str] = ()) -> Callable[..., dsl.PipelineTask]:
    """The KFP component of ``stage``: its artifacts, the settings of the run form, and overrides for all others.

    ``left_out`` are inputs that it does without.
    """
    inputs = tuple(name for name in stage.inputs if name not in left_out)
    required = [(name, dsl.Input[_artifact_class(name)], NO_DEFAULT) for name in inputs]
    required += [(f"{name}_uri", str, NO_DEFAULT) for name in stage.by_uri]
    required += [(name, dsl.Output[_artifact_class(name)], NO_DEFAULT) for name in _outputs(stage)]
    required += [(name, dsl.OutputPath(kind), NO_DEFAULT) for name, kind in stage.results.items()]
    optional = [
        (name, _kfp_type(field.annotation), _kfp_value(field.annotation, field.default))
        for name, field in form_settings([stage]).items()
    ]
    optional += [(name, dict, {}) for name in _override_inputs(stage)]
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
    named = _with_signature(spec, stage.name, required + optional)
    named.__doc__ = "\n".join([f"{stage.summary}.", "", "Args:", *(f"    {n}: {d}" for n, d in descriptions.items())])
    return dsl.container_component(named)


def build(plan: Plan, options: Options) -> Any:
    """The pipeline of ``plan`` as kfp's GraphComponent."""
    parameters = list(_form(plan, options))

    def flow(*channels: Any) -> None:
        given = dict(zip((name for name, *_ in parameters), channels, strict=True))
        made = {name: _importer(name, given[f"{name}_uri"]) for name in plan.brought}
        made |= {f"{name}_uri": given[f"{name}_uri"] for name in plan.brought + plan.brought_by_uri}
        with contextlib.ExitStack() as gates:
            for stage in plan.stages:
                made |= _add(stage, options, given, made)
                if stage.gate and plan.after(stage):
                    condition = made[stage.gate.result] == True  # noqa: E712 (kfp overloads ==)
                    gates.enter_context(dsl.If(condition, name=stage.gate.name))

    stages = ", ".join(stage.name for stage in plan.stages)
    description = f"Fine-tune an embedding model on documents of your own: {stages}."
    return dsl.pipeline(name=pipeline_name(plan), description=description)(_with_signature(flow, "flow", parameters))


def pipeline_name(plan: Plan) -> str:
    """``nemotron-embed`` for the whole recipe, ``nemotron-embed-from-STAGE`` for a later start."""
    start, end = plan.stages[0].name, plan.stages[-1].name
    name = "nemotron-embed" if start == NAMES[0] else f"nemotron-embed-from-{start}"
    return name if end == NAMES[-1] else f"{name}-to-{end}"


def compiled(plan: Plan, options: Options, objects: compiler.KubernetesManifestOptions | None = None) -> str:
    """The pipeline of ``plan`` as YAML, the same bytes for the same stages and options.

    With ``objects`` it is the Pipeline and PipelineVersion that a cluster with KFP's Kubernetes API takes. kfp writes a
    comment with the parameters, in an order that changes from run to run, before the YAML: ours stands there instead.
    """
    manifest = {"kubernetes_manifest_format": objects is not None, "kubernetes_manifest_options": objects}
    title = f"{pipeline_name(plan)} {__version__}: {', '.join(stage.name for stage in plan.stages)}."
    return _yaml(build(plan, options), title, **manifest)


def alone(stage: Stage, image: str) -> str:
    """The component of ``stage`` as YAML, for ``kfp.components.load_component_from_file`` and ``_from_url``."""
    return _yaml(component(stage, image), f"{stage.name} {__version__}: {stage.summary}.")


def _yaml(what: Any, title: str, **manifest: Any) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(what, str(path), **manifest)
        body = path.read_text(encoding="utf-8")
    lines = body.splitlines()
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    header = "# Written by `python pipeline.py compile`; change the stages' declarations, not this file."
    return "\n".join([f"# {title}", header, *lines]) + "\n"


def objects(plan: Plan, options: Options, *, namespace: str) -> str:
    """Pipeline and PipelineVersion of ``plan`` for GitOps.

    A version's content cannot be changed on the cluster: its name carries a digest of it.
    """
    name = pipeline_name(plan)
    digest = hashlib.sha256(compiled(plan, options).encode()).hexdigest()[:10]
    wanted = compiler.KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_version_name=f"{name}-{__version__.replace('.', '-')}-{digest}",
        pipeline_version_display_name=f"{__version__} ({digest})",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    return compiled(plan, options, wanted)


def _add(stage: Stage, options: Options, given: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Add the task of ``stage``; return what it makes, by the name of artifact and output parameter."""
    left_out = [name for name in stage.inputs if name not in made]
    arguments = {name: made[name] for name in stage.inputs if name in made}
    arguments |= {name: made[name] for name in stage.optional_inputs if name in made}
    arguments |= {f"{name}_uri": made[f"{name}_uri"] for name in stage.by_uri}
    # Every parameter is passed, also unchanged ones: kfp 2.17's driver knows no defaults of omitted ones.
    arguments |= {name: given[name] for name in form_settings([stage])}
    arguments |= {name: given[_override_parameter(stage, name)] for name in _override_inputs(stage)}
    if stage.node.gpu:
        arguments |= {GPU_COUNT: given.get(f"{stage.name}_{GPU_COUNT}", "0")}
    task = component(stage, options.images[stage.image], left_out)(**arguments)
    task.set_display_name(f"{stage.name}: {stage.summary}")
    # What a stage fetches by itself may be new although its address is not: no key of a cache tells.
    task.set_caching_options(stage.cache and not left_out)
    _place(task, stage, options, given)
    for secret in stage.secrets:
        kubernetes.use_secret_as_env(
            task, secret_name=secret.name, secret_key_to_env={secret.key: secret.env}, optional=True
        )
    if stage.retries:
        task.set_retry(stage.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="600s")
    return {name: task.outputs[name] for name in (*stage.outputs, *stage.results)}


def _place(task: dsl.PipelineTask, stage: Stage, options: Options, given: Mapping[str, Any]) -> None:
    """Ask for the node that ``stage`` needs."""
    node = stage.node
    task.set_cpu_request(node.cpu).set_cpu_limit(node.cpu).set_memory_request(node.memory).set_memory_limit(node.memory)
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
    task.set_accelerator_limit(given[f"{stage.name}_{GPU_COUNT}"])
    kubernetes.add_node_selector_json(task, given[f"{stage.name}_node_selector"])
    kubernetes.add_toleration_json(task, given["gpu_tolerations"])


def _importer(name: str, uri: Any) -> Any:
    # reimport: the bytes behind a URI may be new although the URI is not.
    task = dsl.importer(artifact_uri=uri, artifact_class=_artifact_class(name), reimport=True)
    return task.set_display_name(f"import {name}").output


def _form(plan: Plan, options: Options) -> Iterable[tuple[str, Any, Any]]:
    """Name, type and default of each field of the run form, in the order in which a person fills it in."""
    for name in plan.brought:
        yield f"{name}_uri", str, NO_DEFAULT
    for name in plan.brought_by_uri:
        yield f"{name}_uri", str, ""
    said: dict[str, Any] = {}
    for name, field in form_settings(plan.stages).items():
        owner = next(stage for stage in plan.stages if name in stage.config.model_fields)
        said[name] = getattr(options.configs[owner.name], name)
        yield name, _kfp_type(field.annotation), _kfp_value(field.annotation, said[name])
    if encoders := [stage for stage in plan.stages if issubclass(stage.config, EncoderConfig)]:
        shared = _unsaid(options.configs[encoders[0].name], EncoderConfig, said)
        said |= shared
        yield ENCODER_OVERRIDES, dict, shared
    for stage in plan.stages:
        yield f"{stage.name}_{OVERRIDES}", dict, _unsaid(options.configs[stage.name], stage.config, said)
    gpu_stages = [stage for stage in plan.stages if options.asks_for_gpu(stage)]
    for stage in gpu_stages:
        yield f"{stage.name}_node_selector", dict, NODE_LABELS[options.node_labels][stage.node.gpu]
        yield f"{stage.name}_{GPU_COUNT}", str, "1"
    if gpu_stages:
        yield "gpu_tolerations", list, GPU_TOLERATIONS


def _unsaid(config: Settings, model: type[Settings], said: Mapping[str, Any]) -> dict[str, Any]:
    """Values in ``config`` of ``model``'s settings that are neither the default nor what ``said`` says already."""
    values = config.model_dump(mode="json", include=set(model.model_fields))
    return {name: v for name, v in values.items() if v != said.get(name, model.model_fields[name].default)}


def _override_inputs(stage: Stage) -> tuple[str, ...]:
    return (OVERRIDES, ENCODER_OVERRIDES) if issubclass(stage.config, EncoderConfig) else (OVERRIDES,)


def _override_parameter(stage: Stage, name: str) -> str:
    return name if name == ENCODER_OVERRIDES else f"{stage.name}_{name}"


def _outputs(stage: Stage) -> tuple[str, ...]:
    return (*stage.outputs, stage.metrics_artifact)


def _artifact_class(name: str) -> Any:
    return getattr(dsl, ARTIFACTS[name].kfp_type)


def _kfp_type(annotation: Any) -> Any:
    """The type that KFP knows for a setting's type; one that may be null is a text, empty for null.

    kfp 2.17 has no null in a run form: a parameter without value does not reach the task.
    """
    if is_optional(annotation):
        return str
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return type(typing.get_args(annotation)[0])
    if origin is typing.Annotated:
        return _kfp_type(typing.get_args(annotation)[0])
    return origin or annotation


def _kfp_value(annotation: Any, value: Any) -> Any:
    if is_optional(annotation):
        return "" if value is None else str(value)
    return value


def _with_signature(function: Callable, name: str, parameters: Iterable[tuple[str, Any, Any]]) -> Callable:
    """``function`` as kfp would see it had its parameters been written out."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(n, positional, annotation=kind, default=default) for n, kind, default in parameters]
    )
    function.__name__ = name
    return function


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input or a stale file, 3 a person must act, 75 try again."""
    parser = _parser()
    # argparse takes positional arguments in one run only; NAME=VALUE may stand anywhere.
    args, rest = parser.parse_known_args(argv)
    if unknown := [text for text in rest if text.startswith("-") or "=" not in text or "parameters" not in args]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.parameters += rest
    logging.basicConfig(format="%(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        return args.run(args)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; a run that was started goes on", file=sys.stderr)
        return Transient.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipeline.py", description="Stages as Kubeflow pipelines.")
    commands = parser.add_subparsers(dest="command", required=True)
    sub = _command(commands, "compile", _compile, "Write the pipelines as YAML")
    sub.add_argument("--from", dest="starts", action="append", choices=NAMES, help="only this start (default: each)")
    _add_compile_options(sub)
    sub.add_argument("--out", type=Path, default=PIPELINES, metavar="DIR", help="default: manifests/pipelines")
    sub.add_argument("--check", action="store_true", help="write nothing; exit 2 when a file in DIR differs")
    sub.add_argument(
        "--format",
        choices=["kfp", "kubernetes"],
        default="kfp",
        help="kubernetes writes Pipeline and PipelineVersion objects for GitOps, KFP 2.17 with its Kubernetes store",
    )
    sub.add_argument("--namespace", default="kubeflow", help="of those objects (default: kubeflow)")

    sub = _command(commands, "submit", _submit, "Start a run")
    _add_run_options(sub)
    sub.add_argument("--run-name", metavar="NAME", help="default: the pipeline's name and the time")
    sub.add_argument("--wait", action="store_true", help="follow the run; exit 3 when it does not succeed")
    sub.add_argument("--timeout", type=float, default=86400, metavar="SECONDS", help="of --wait (default: a day)")
    sub.add_argument("--dry-run", action="store_true", help="check the parameters and show them; start nothing")

    sub = _command(commands, "upload", _upload, "Make a version of the pipeline on the server")
    _add_start(sub)
    _add_compile_options(sub)
    _add_server_options(sub)
    sub.add_argument("--version", default=__version__, help=f"name of the version (default: {__version__})")

    schedules = commands.add_parser("schedule", help="Recurring runs").add_subparsers(dest="action", required=True)
    sub = _command(schedules, "create", _schedule, "Create a recurring run, or change the one of that name")
    sub.add_argument("name", help="name of the recurring run")
    sub.add_argument(
        "--cron", required=True, help="when: six fields, seconds first, or the usual five; UTC: '0 2 * * *'"
    )
    sub.add_argument("--version", default=__version__, help=f"version of the pipeline to pin (default: {__version__})")
    _add_run_options(sub)
    sub = _command(schedules, "list", _list_schedules, "Every recurring run of the experiment")
    _add_server_options(sub, experiment=True)
    for action, change, text in (
        ("pause", "disable", "Start no more runs"),
        ("resume", "enable", "Start runs again"),
        ("delete", "delete", "Forget a recurring run; its runs stay"),
    ):
        sub = _command(schedules, action, _change_schedule, text)
        sub.add_argument("name", help="name of the recurring run")
        sub.set_defaults(change=change)
        _add_server_options(sub, experiment=True)
    return parser


def _command(commands: Any, name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
    sub.set_defaults(run=run)
    return sub


def _add_start(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--from", dest="start", choices=NAMES, default=NAMES[0], help="first stage (default: sdg)")


def _add_compile_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", dest="end", choices=NAMES, default=NAMES[-1], help="last stage (default: deploy)")
    sub.add_argument("--profile", choices=sorted(PROFILES), default="llama", help="defaults of the run form")
    sub.add_argument(
        "--node-labels",
        choices=[*NODE_LABELS, NO_GPU],
        default="gfd",
        help="how nodes name their GPU: GPU feature discovery, GKE, EKS with Karpenter; none asks for no GPU",
    )
    optional = ", ".join(dict.fromkeys(name for stage in STAGES for name in stage.optional_inputs))
    sub.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="ARTIFACT",
        help=f"ask for an optional artifact as well ({optional}); pipelines that cannot take it are left as they are",
    )
    replaceable = ", ".join(f"{name} ({stage.name}.{by})" for stage in STAGES for name, by in stage.replaced_by.items())
    sub.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="ARTIFACT",
        help=f"do not ask for an artifact that a setting of its stage does for: {replaceable}",
    )
    sub.add_argument("--queue", metavar="NAME", help="Kueue LocalQueue in which GPU stages wait for quota")
    sub.add_argument(
        "--cache-claim", metavar="NAME", help="PersistentVolumeClaim that keeps base models for later runs"
    )
    sub.add_argument(
        "--set", dest="given", action="append", default=[], metavar="NAME=VALUE", help="another default in the form"
    )


def _add_run_options(sub: argparse.ArgumentParser) -> None:
    """Options of what starts runs, now or by the clock."""
    sub.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="fields of the run form, corpus_uri=s3://...")
    sub.add_argument("--params", type=Path, metavar="FILE", help="the same as a YAML file; the command line wins")
    _add_start(sub)
    _add_compile_options(sub)
    sub.add_argument("--pipeline-root", metavar="URI", help="where artifacts go (default: the server's)")
    sub.add_argument("--service-account", metavar="NAME", help="of the run's pods (default: the server's)")
    _add_server_options(sub, experiment=True)


def _add_server_options(sub: argparse.ArgumentParser, *, experiment: bool = False) -> None:
    sub.add_argument(
        "--host",
        metavar="URL",
        help="of the API (default: KF_PIPELINES_ENDPOINT, the cluster around, or kubectl's context); KFP_TOKEN holds "
        "the token or KFP_COOKIES Dex's session, and in a pod the service account's token serves",
    )
    sub.add_argument("--namespace", help="of your profile; none on a server for one user")
    if experiment:
        sub.add_argument("--experiment", default="nemotron-embed", help="default: nemotron-embed")


def _compile(args: argparse.Namespace) -> int:
    pinned = images()
    wanted = {}
    for plan, configs in _requested(args):
        options = Options(configs, pinned, args.node_labels, args.queue, args.cache_claim)
        text = compiled(plan, options) if args.format == "kfp" else objects(plan, options, namespace=args.namespace)
        wanted[args.out / f"{pipeline_name(plan)}.yaml"] = text
    if args.out == PIPELINES and not args.starts:
        # For pipelines of other people; what a stage is does not depend on the options.
        wanted |= {ROOT / "components" / s.name / "component.yaml": alone(s, pinned[s.image]) for s in STAGES}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if not args.check:
        for path, text in wanted.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}): choose another --out") from None
            print(path)
    elif stale:
        raise InputError(f"not what would be compiled: {', '.join(map(str, stale))}: run `python pipeline.py compile`")
    return 0


def _submit(args: argparse.Namespace) -> int:
    plan, options, given = _run_of(args)
    name = args.run_name or f"{pipeline_name(plan)} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    if args.dry_run:
        print(yaml.safe_dump(given, sort_keys=False), end="")
        return 0
    server = _server(args)
    run_id = server.start(name, compiled(plan, options), _launch(args, given))
    if not args.wait:
        return 0
    began = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    state = server.wait(run_id, timeout=args.timeout, show=lambda line: print(line, flush=True))
    for line in _figures(given.get("history_uri"), since=began):
        print(line)
    if state != "SUCCEEDED":
        raise ActionNeeded(f"run {run_id} ended as {state}: its page shows the task and its log")
    return 0


def _figures(history_uri: str | None, *, since: str) -> list[str]:
    """What the run came to: KFP's API has no metrics, the history has them."""
    if not history_uri:
        return []
    try:
        return [run.summary() for run in History(history_uri).runs(since=since)]
    except (StageError, ImportError) as error:
        return [f"figures: {history_uri} cannot be read from here ({error})"]


def _upload(args: argparse.Namespace) -> int:
    plan, options = _chosen(args)
    name = pipeline_name(plan)
    version = _server(args).upload(name, compiled(plan, options), version=args.version)
    print(f"{name} {args.version}: {'uploaded' if version.created else 'is there already'}")
    return 0


def _schedule(args: argparse.Namespace) -> int:
    plan, options, given = _run_of(args)
    cron = _cron(args.cron)
    server = _server(args)
    version = server.upload(pipeline_name(plan), compiled(plan, options), version=args.version)
    changed = server.schedule(args.name, version, cron, _launch(args, given))
    print(f"{args.name}: {'scheduled' if changed else 'is scheduled so already'} ({cron})")
    return 0


def _list_schedules(args: argparse.Namespace) -> int:
    for name, cron, mode, given in _server(args).schedules(args.experiment):
        print(f"{name}  {cron}  {'paused' if mode == 'DISABLE' else 'active'}  {given.get('corpus_uri', '')}".rstrip())
    return 0


def _change_schedule(args: argparse.Namespace) -> int:
    _server(args).change_schedule(args.name, args.experiment, args.change)
    print(f"{args.name}: {args.change}d")
    return 0


def _server(args: argparse.Namespace) -> Server:
    """Credentials come from the environment only: arguments are seen by every user of the machine."""
    with warnings.catch_warnings(), asking("connecting"):
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


def _launch(args: argparse.Namespace, given: Mapping[str, Any]) -> Launch:
    return Launch(args.experiment, given, args.pipeline_root, args.service_account)


def _cron(text: str) -> str:
    """Six fields for KFP. Raises InputError for what is no cron expression."""
    fields = text.split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6 or not all(re.fullmatch(r"[\w*/,?#-]+", field) for field in fields):
        raise InputError(
            f"--cron '{text}': expected five fields, or six with seconds first: '0 2 * * *' is daily at two"
        )
    return " ".join(fields)


def _run_of(args: argparse.Namespace) -> tuple[Plan, Options, dict[str, Any]]:
    """The chosen pipeline and what its form is filled in with."""
    plan, options = _chosen(args)
    texts = _parameter_file(args.params) if args.params else {}
    for text in args.parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}': expected NAME=VALUE")
        texts[name] = value
    return plan, options, arguments(plan, options, texts)


def _parameter_file(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected names and values")
    return {str(name): value for name, value in found.items()}


def arguments(plan: Plan, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` as arguments of the run, checked by the stages' own models; texts are read as on the command line.

    Raises InputError for unknown and missing fields and for values that a stage would refuse.
    """
    fields = {name: (kind, default) for name, kind, default in _form(plan, options)}
    values = {}
    for name, value in given.items():
        if name not in fields:
            close = difflib.get_close_matches(name, list(fields), n=1)
            raise InputError(f"the form has no field '{name}'" + (f": did you mean '{close[0]}'?" if close else ""))
        kind = fields[name][0]
        values[name] = value if kind is str or not isinstance(value, str) else _read(name, kind, value)
        if not isinstance(values[name], (int, float) if kind is float else kind):
            raise InputError(f"{name} = {value!r}: expected {_KINDS[kind]}")
    missing = [name for name, (_, default) in fields.items() if default is NO_DEFAULT and not values.get(name)]
    if missing:
        raise InputError(f"{', '.join(missing)}: give the address as NAME=URI")
    for name in plan.brought + plan.brought_by_uri:
        if uri := values.get(f"{name}_uri"):
            _check_address(plan, name, uri)
    filled = {name: default for name, (_, default) in fields.items()} | values
    for stage in plan.stages:
        parameters = {name: filled[name] for name in form_settings([stage])}
        parameters |= {name: filled[_override_parameter(stage, name)] for name in _override_inputs(stage)}
        needed = stage.needed_inputs(settings_of(stage, parameters))
        for name in plan.left_out:
            if name in needed:
                raise InputError(f"{stage.name}_{OVERRIDES}: set {stage.replaced_by[name]}, or compile with {name}")
    return values


def _check_address(plan: Plan, name: str, uri: str) -> None:
    """Raises InputError, which does not repeat ``uri``: it may hold a password."""
    scheme, separator, place = uri.partition("://")
    if name in plan.brought and scheme == "hf":
        raise InputError(f"{name}_uri: KFP imports nothing from hf://{_instead(plan, name)}")
    if not separator:
        raise InputError(f"{name}_uri is no address that a cluster can read: give s3://bucket/... or gs://bucket/...")
    if "@" in place.partition("/")[0]:
        raise InputError(f"{name}_uri holds credentials: they come from Secrets or the service account")


def _instead(plan: Plan, name: str) -> str:
    stages = [stage for stage in plan.stages if name in stage.replaced_by]
    return "".join(f": use --without {name}, and {one.replaced_by[name]} of {one.name}_{OVERRIDES}" for one in stages)


_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}


def _read(name: str, kind: type, text: str) -> Any:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        # YAML takes 1e-5 for a text.
        return kind(text) if kind in (int, float) else yaml.safe_load(text)
    raise InputError(f"{name} = {text!r}: expected {_KINDS[kind]}")


def _chosen(args: argparse.Namespace) -> tuple[Plan, Options]:
    """The one pipeline that ``args`` choose."""
    ((plan, configs),) = _requested(argparse.Namespace(**{**vars(args), "starts": [args.start]}))
    return plan, Options(configs, images(), args.node_labels, args.queue, args.cache_claim)


def _requested(args: argparse.Namespace) -> list[tuple[Plan, dict[str, Settings]]]:
    """Every plan to compile with its settings.

    With several starts, what a plan has no use for is left out of it; InputError for what none has use for.
    """
    plans = []
    for start in args.starts or NAMES:
        plan = make_plan(start, args.end)
        offered = {name for stage in plan.stages for name in stage.optional_inputs} - set(plan.made)
        replaceable = {name for stage in plan.stages for name in stage.replaced_by} & set(plan.brought)
        extra = [name for name in args.extra if name in offered]
        without = [name for name in args.without if name in replaceable]
        plans.append(make_plan(start, args.end, extra=extra, without=without))
    for name in args.extra:
        if not any(name in plan.brought for plan in plans):
            raise InputError(f"--with {name}: no chosen stage takes it from outside")
    for name in args.without:
        if not any(name in plan.left_out for plan in plans):
            raise InputError(f"--without {name}: no chosen stage can do without it")
    given = dict(_assignment(text) for text in args.given)
    chosen = [stage for stage in STAGES if any(stage in plan.stages for plan in plans)]
    if any(SERVING_NODE_SELECTOR in stage.config.model_fields for stage in chosen):
        # The model that deploy starts runs on nodes of the same cluster.
        labels = {} if args.node_labels == NO_GPU else NODE_LABELS[args.node_labels]["A100"]
        given = {SERVING_NODE_SELECTOR: labels} | given
    resolve(chosen, profile_name=args.profile, given=given)
    return [(plan, resolve(plan.stages, profile_name=args.profile, given=_meant_for(plan, given))) for plan in plans]


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected NAME=VALUE")
    owner, name = find_setting(key)
    return key, parse_text(owner.config, name, value)


def _meant_for(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if any(values_for(stage, {key: value}) for stage in plan.stages)}


if __name__ == "__main__":
    sys.exit(main())
