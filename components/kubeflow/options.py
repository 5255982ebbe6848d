"""Options of pipeline.py's commands, and what they choose: stages, their settings, images, values of the run form."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from components.core.errors import InputError
from components.core.pinned_images import read_pins, stage_images
from components.core.settings import Settings, parse_text
from components.kubeflow.run_form import NO_GPU, NODE_LABELS, Options, read_arguments
from components.recipe.plan import Plan, find_setting, make_plan, resolve_settings, values_for
from components.recipe.profiles import PROFILES
from components.recipe.stages import NAMES, STAGES

SERVING_NODE_SELECTOR = "serving_node_selector"


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add the command ``name``, which calls ``run``."""
    sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
    sub.set_defaults(run=run)
    return sub


def add_start(sub: argparse.ArgumentParser) -> None:
    """Add the option that chooses one pipeline."""
    sub.add_argument("--from", dest="start", choices=NAMES, default=NAMES[0], help="first stage (default: sdg)")


def add_compile_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of how pipelines are compiled, for every command that compiles."""
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
        "--set", dest="defaults", action="append", default=[], metavar="NAME=VALUE", help="another default in the form"
    )


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of commands that start runs, now or on a schedule."""
    sub.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="fields of the run form, corpus_uri=s3://...")
    sub.add_argument("--params", type=Path, metavar="FILE", help="the same as a YAML file; the command line wins")
    add_start(sub)
    add_compile_options(sub)
    sub.add_argument("--pipeline-root", metavar="URI", help="where artifacts go (default: the server's)")
    sub.add_argument("--service-account", metavar="NAME", help="of the run's pods (default: the server's)")
    add_server_options(sub, experiment=True)


def add_server_options(sub: argparse.ArgumentParser, *, experiment: bool = False) -> None:
    """Add the options that name the server. There is none for credentials: they come from the environment."""
    sub.add_argument(
        "--host",
        metavar="URL",
        help="of the API (default: KF_PIPELINES_ENDPOINT, the cluster around, or kubectl's context); KFP_TOKEN holds "
        "the token or KFP_COOKIES Dex's session, and in a pod the service account's token serves",
    )
    sub.add_argument("--namespace", help="of your profile; none on a server for one user")
    if experiment:
        sub.add_argument("--experiment", default="nemotron-embed", help="default: nemotron-embed")


def add_timeout(sub: argparse.ArgumentParser, what: str) -> None:
    """Add the option that limits how long a run is followed."""
    sub.add_argument("--timeout", type=float, default=86400, metavar="SECONDS", help=f"{what} (default: a day)")


def read_images() -> dict[str, str]:
    """Return the image of each kind (``cpu``, ``gpu``, ...) from images/pins.env, or the environment.

    Raises InputError for an image without tag or digest, or with the tag latest.
    """
    images = stage_images(read_pins(environment=os.environ))
    for kind, image in images.items():
        if not re.fullmatch(r"[^\s:@]+(:\d+)?[^\s:@]*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image) or not re.search(
            r"(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})$", image
        ):
            raise InputError(f"{kind.upper()}_IMAGE = {image}: name an image with a fixed tag or digest, never latest")
    return images


def choose_pipeline(args: argparse.Namespace) -> tuple[Plan, Options]:
    """Return the one pipeline that ``args`` choose, and how to compile it."""
    ((plan, configs),) = plan_pipelines(argparse.Namespace(**{**vars(args), "starts": [args.start]}))
    return plan, Options(configs, read_images(), args.node_labels, args.queue, args.cache_claim)


def choose_run(args: argparse.Namespace) -> tuple[Plan, Options, dict[str, Any]]:
    """Return the chosen pipeline, how to compile it, and the values of its run form."""
    plan, options = choose_pipeline(args)
    texts = _parameter_file(args.params) if args.params else {}
    for text in args.parameters:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"'{text}': expected NAME=VALUE")
        texts[name] = value
    return plan, options, read_arguments(plan, options, texts)


def _parameter_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected names and values")
    return {str(name): value for name, value in content.items()}


def plan_pipelines(args: argparse.Namespace) -> list[tuple[Plan, dict[str, Settings]]]:
    """Return every plan to compile with the settings of its stages.

    With several starts, an option that a plan has no use for does not apply to it. Raises InputError for an option
    that no plan has use for.
    """
    plans = []
    for start in args.starts or NAMES:
        plan = make_plan(start, args.end)
        offered = {name for stage in plan.stages for name in stage.optional_inputs} - set(plan.output_artifacts)
        replaceable = {name for stage in plan.stages for name in stage.replaced_by} & set(plan.required_artifacts)
        extra = [name for name in args.extra if name in offered]
        without = [name for name in args.without if name in replaceable]
        plans.append(make_plan(start, args.end, extra=extra, without=without))
    for name in args.extra:
        if not any(name in plan.required_artifacts for plan in plans):
            raise InputError(f"--with {name}: no chosen stage takes it from outside")
    for name in args.without:
        if not any(name in plan.replaced_artifacts for plan in plans):
            raise InputError(f"--without {name}: no chosen stage can do without it")
    defaults = dict(_parse_assignment(text) for text in args.defaults)
    chosen = [stage for stage in STAGES if any(stage in plan.stages for plan in plans)]
    if any(SERVING_NODE_SELECTOR in stage.config.model_fields for stage in chosen):
        # The model that deploy starts runs on nodes of the same cluster.
        labels = {} if args.node_labels == NO_GPU else NODE_LABELS[args.node_labels]["A100"]
        defaults = {SERVING_NODE_SELECTOR: labels} | defaults
    resolve_settings(chosen, profile_name=args.profile, values=defaults)
    return [
        (plan, resolve_settings(plan.stages, profile_name=args.profile, values=_select_values(plan, defaults)))
        for plan in plans
    ]


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: expected NAME=VALUE")
    owner, name = find_setting(key)
    return key, parse_text(owner.config, name, value)


def _select_values(plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that some stage of ``plan`` takes."""
    return {
        key: value for key, value in values.items() if any(values_for(stage, {key: value}) for stage in plan.stages)
    }
