"""The declaration of a stage: inputs, outputs, settings, image and node. It imports nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from components.core.settings import Settings


@dataclass(frozen=True)
class Secret:
    """A key of a Kubernetes Secret that the stage gets as environment variable ``env``, where the Secret exists."""

    env: str
    name: str
    key: str


S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ALLOW_HTTP")


def s3_secrets(name: str) -> tuple[Secret, ...]:
    """Return the variables that obstore's S3 client reads, from the Secret ``name``."""
    return tuple(Secret(env=variable, name=name, key=variable) for variable in S3_VARIABLES)


@dataclass(frozen=True)
class Node:
    """The node a stage asks for. ``gpu`` is the default product, a key of components.kubeflow.run_form.NODE_LABELS."""

    gpu: str | None = None
    cpu: str = "4"
    memory: str = "16Gi"
    shared_memory: str | None = None


@dataclass(frozen=True)
class StageGate:
    """A boolean output parameter: the stages after this one run only when ``result`` is true.

    ``name`` is that of the group in KFP's graph. ``keeps`` says that a closed gate leaves what earlier runs made
    valid: then the stage may leave its own outputs unmade.
    """

    result: str
    name: str
    keeps: bool = False


@dataclass(frozen=True)
class Stage:
    """One step of the recipe. Inputs and outputs are names of artifacts; stages are wired by these names.

    Attributes:
        name: command and folder of the stage.
        summary: what it does, in a few words.
        config: class of its settings.
        outputs: artifacts that it makes.
        inputs: artifacts that it needs.
        replaced_by: for an input that may be missing, the setting that stands in for it.
        optional_inputs: artifacts that it uses when an earlier stage made them or the user gives them.
        by_uri: artifacts that the program gets as a URI and that are never downloaded for it. The URI of a missing one
            is empty, and the program raises InputError when it needs it.
        from_champion: for an optional input that is not given, the artifact of the champion in ``past_runs`` that the
            runner fetches in its place.
        results: output parameters. The program returns them among its metrics; one called ``<artifact>_uri`` is the URI
            of that output or input.
        gate: decides, by one of ``results``, whether the stages after this one run.
        image: kind of the image, a target of images/.
        node: CPU, memory and GPU that a pod asks for.
        secrets: keys of Secrets that the pod gets as environment variables.
        cache: whether KFP may reuse the outputs of an equal task.
        retries: how often KFP starts a failed task again.
        headline: metrics that the last log line of the stage shows.
        previews: whether the program has a function ``preview``, which a dry run calls, and a function ``sample``.
        check_on_this_machine: raises InputError for settings that a run without KFP cannot carry out.
    """

    name: str
    summary: str
    config: type[Settings]
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    replaced_by: Mapping[str, str] = field(default_factory=dict)
    optional_inputs: tuple[str, ...] = ()
    by_uri: tuple[str, ...] = ()
    from_champion: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, type] = field(default_factory=dict)
    gate: StageGate | None = None
    image: str = "cpu"
    node: Node = Node()
    secrets: tuple[Secret, ...] = ()
    cache: bool = True
    retries: int = 2
    headline: tuple[str, ...] = ()
    previews: bool = False
    check_on_this_machine: Callable[[Any], None] | None = None

    @property
    def metrics_artifact(self) -> str:
        """Name of the KFP Metrics artifact that carries the stage's figures."""
        return f"{self.name}_metrics"

    def needed_inputs(self, config: Settings) -> tuple[str, ...]:
        """Return the inputs that no setting of ``config`` replaces."""
        return tuple(name for name in self.inputs if not getattr(config, self.replaced_by.get(name, ""), None))

    def program(self) -> Callable[..., dict[str, Any]]:
        """Return the stage's ``run`` function; importing it may need the stage's heavy packages."""
        run: Callable[..., dict[str, Any]] = self._import_program().run
        return run

    def preview(self) -> Callable[..., str]:
        """Return the program's ``preview``: what a run would do and cost, as text, from the same inputs."""
        preview: Callable[..., str] = self._import_program().preview
        return preview

    def sample(self) -> Callable[..., str]:
        """Return the program's ``sample``: what it makes of its first input, as text; nothing is published."""
        sample: Callable[..., str] = self._import_program().sample
        return sample

    def _import_program(self) -> ModuleType:
        return importlib.import_module(f"components.{self.name}.program")
