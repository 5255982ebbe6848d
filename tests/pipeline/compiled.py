"""A compiled pipeline as KFP's own messages, and a check that everything in it refers to something that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as k8s
from kfp.pipeline_spec import pipeline_spec_pb2 as kfp

_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


@dataclass(frozen=True)
class Pipeline:
    """The four layers of a compiled pipeline; ``kubernetes`` by name of the executor."""

    spec: kfp.PipelineSpec
    deployment: kfp.PipelineDeploymentConfig
    platform: kfp.PlatformSpec
    kubernetes: dict[str, k8s.KubernetesExecutorConfig]

    def container(self, stage: str) -> Any:
        return self.deployment.executors[f"exec-{stage}"].container

    def task(self, stage: str) -> kfp.PipelineTaskSpec:
        """The task of ``stage``, wherever it stands."""
        dags = [self.spec.root.dag, *(component.dag for component in self.spec.components.values())]
        return next(dag.tasks[stage] for dag in dags if stage in dag.tasks)

    def default(self, parameter: str) -> Any:
        """Default of a field of the run form."""
        return json_format.MessageToDict(self.spec.root.input_definitions.parameters[parameter].default_value)


def parse(text: str) -> Pipeline:
    """``text`` by KFP's message types; a key that they do not know is an error."""
    documents = list(yaml.safe_load_all(text))
    spec = json_format.ParseDict(documents[0], kfp.PipelineSpec())
    deployment = _again(spec.deployment_spec, kfp.PipelineDeploymentConfig())
    platform = json_format.ParseDict(documents[1] if len(documents) > 1 else {}, kfp.PlatformSpec())
    executors = platform.platforms["kubernetes"].deployment_spec.executors
    return Pipeline(
        spec,
        deployment,
        platform,
        {name: _again(config, k8s.KubernetesExecutorConfig()) for name, config in executors.items()},
    )


def _again(struct: Any, message: Any) -> Any:
    return json_format.ParseDict(json_format.MessageToDict(struct), message)


def dangling(pipeline: Pipeline) -> list[str]:
    """Everything that refers to nothing, or to something of another type; every required input that is not given."""
    found: list[str] = []
    components = {"root": pipeline.spec.root, **pipeline.spec.components}
    for name, component in components.items():
        if component.executor_label and component.executor_label not in pipeline.deployment.executors:
            found.append(f"{name}: no executor {component.executor_label}")
        for task_name, task in component.dag.tasks.items():
            found += [f"{name}/{task_name}: {problem}" for problem in _task(pipeline, component, task)]
        for output, selected in component.dag.outputs.artifacts.items():
            for one in selected.artifact_selectors:
                producer = component.dag.tasks.get(one.producer_subtask)
                if producer is None or one.output_artifact_key not in _outputs(pipeline, producer).artifacts:
                    found.append(f"{name}: output {output} comes from nothing")
    unknown = set(pipeline.kubernetes) - set(pipeline.deployment.executors)
    return found + [f"platform: no executor {name}" for name in sorted(unknown)]


def _outputs(pipeline: Pipeline, task: kfp.PipelineTaskSpec) -> Any:
    return pipeline.spec.components[task.component_ref.name].output_definitions


def _task(pipeline: Pipeline, parent: Any, task: kfp.PipelineTaskSpec) -> Iterator[str]:
    component = pipeline.spec.components.get(task.component_ref.name)
    if component is None:
        yield f"no component {task.component_ref.name}"
        return
    siblings = parent.dag.tasks
    wanted = component.input_definitions
    for name, given in task.inputs.parameters.items():
        kind = given.WhichOneof("kind")
        source: Any = None
        if kind == "component_input_parameter":
            source = parent.input_definitions.parameters.get(given.component_input_parameter)
        elif kind == "task_output_parameter":
            producer = siblings.get(given.task_output_parameter.producer_task)
            outputs = _outputs(pipeline, producer).parameters if producer else {}
            source = outputs.get(given.task_output_parameter.output_parameter_key)
        elif kind == "runtime_value":
            for inner in _PLACEHOLDER.findall(json_format.MessageToJson(given.runtime_value)):
                if inner not in task.inputs.parameters:
                    yield f"{name} holds {inner}, which is no input of the task"
            continue
        if source is None:
            yield f"{name} comes from nothing"
        elif name in wanted.parameters and source.parameter_type != wanted.parameters[name].parameter_type:
            yield f"{name} changes its type"
    for name, given in task.inputs.artifacts.items():
        if given.WhichOneof("kind") == "component_input_artifact":
            source = parent.input_definitions.artifacts.get(given.component_input_artifact)
        else:
            producer = siblings.get(given.task_output_artifact.producer_task)
            outputs = _outputs(pipeline, producer).artifacts if producer else {}
            source = outputs.get(given.task_output_artifact.output_artifact_key)
            if producer and not _driver_finds(pipeline, producer, given.task_output_artifact.producer_task):
                yield f"{name} comes from an importer that KFP records as {producer.task_info.name!r}"
        if source is None:
            yield f"{name} comes from nothing"
        elif source.artifact_type.schema_title != wanted.artifacts[name].artifact_type.schema_title:
            yield f"{name} changes its type"
    for kind, inputs in (("parameter", "parameters"), ("artifact", "artifacts")):
        for name, definition in getattr(wanted, inputs).items():
            if name not in getattr(task.inputs, inputs) and not definition.is_optional:
                yield f"required {kind} {name} is not given"
    yield from (f"depends on {name}, which is not there" for name in task.dependent_tasks if name not in siblings)
    yield from _placement(pipeline, parent, task, component.executor_label)


def _driver_finds(pipeline: Pipeline, producer: kfp.PipelineTaskSpec, name: str) -> bool:
    """Whether KFP's driver finds the execution of ``producer``, which the task after it calls ``name``.

    A container's execution is recorded under the task's name in the DAG; an importer's under ``task_info.name``, which
    a display name replaces (backend/src/v2/component/importer_launcher.go, KFP 2.14.0 to 2.17.0). The driver resolves
    ``producer_task`` among the recorded names ("cannot find producer task").
    """
    executor = pipeline.spec.components[producer.component_ref.name].executor_label
    is_importer = bool(executor) and pipeline.deployment.executors[executor].HasField("importer")
    return not is_importer or producer.task_info.name == name


def _placement(pipeline: Pipeline, parent: Any, task: kfp.PipelineTaskSpec, executor: str) -> Iterator[str]:
    """Resources and node of a container: KFP 2.17's driver reads strings for the first, JSON for the second."""
    if not executor:
        return
    container = pipeline.deployment.executors[executor].container
    for name in _PLACEHOLDER.findall(json_format.MessageToJson(container.resources)):
        source = task.inputs.parameters[name].component_input_parameter if name in task.inputs.parameters else None
        if source is None or parent.input_definitions.parameters[source].parameter_type != kfp.ParameterType.STRING:
            yield f"resource placeholder {name} is no string that the task is given"
    config = pipeline.kubernetes.get(executor)
    text = json_format.MessageToJson(config) if config else ""
    for name in re.findall(r'"componentInputParameter": "([^"]+)"', text):
        if name not in parent.input_definitions.parameters:
            yield f"the platform refers to {name}, which is no input of its parent"
