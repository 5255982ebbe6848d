"""The graph of the compiled pipeline: its tasks, the conditions around them, and the artifacts that pass between."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from docs.drawing.svg import Box, Drawing

PIPELINE = Path(__file__).resolve().parents[2] / "manifests" / "pipelines" / "nemotron-embed.yaml"
_WIDTH, _HEIGHT, _GAP, _LEFT, _ROW = 92, 48, 96, 24, 108
# What a condition of the compiled pipeline asks.
_QUESTIONS = {"sdg-changed": "only if the data changed", "eval-passed": "only if the quality gate passed"}


@dataclass
class Graph:
    """Tasks in the order of the pipeline, artifacts between them, and the tasks of each condition."""

    tasks: list[str] = field(default_factory=list)
    artifacts: list[tuple[str, str, str]] = field(default_factory=list)
    conditions: list[tuple[str, list[str]]] = field(default_factory=list)


def read_graph(path: Path = PIPELINE) -> Graph:
    """Read the compiled pipeline at ``path``."""
    spec = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    graph = Graph()
    _read_tasks(spec, spec["root"]["dag"], {}, graph)
    graph.artifacts = [edge for edge in graph.artifacts if edge[0] in graph.tasks]
    return graph


def _read_tasks(spec: dict[str, Any], dag: dict[str, Any], outer: dict[str, tuple[str, str]], graph: Graph) -> None:
    """Add the tasks of ``dag`` in the order of what they wait for; ``outer`` are the inputs of the dag itself."""
    waiting = dict(dag["tasks"])
    while waiting:
        ready = [name for name, task in waiting.items() if not set(task.get("dependentTasks", ())) & set(waiting)]
        for name in ready:
            task = waiting.pop(name)
            sources = {}
            for artifact, source in task.get("inputs", {}).get("artifacts", {}).items():
                output = source.get("taskOutputArtifact")
                inner = source.get("componentInputArtifact")
                sources[artifact] = (output["producerTask"], output["outputArtifactKey"]) if output else outer[inner]
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                start = len(graph.tasks)
                number = len(graph.conditions)
                question = next(q for key, q in _QUESTIONS.items() if key in task["triggerPolicy"]["condition"])
                graph.conditions.append((question, []))
                _read_tasks(spec, component["dag"], sources, graph)
                graph.conditions[number] = (question, graph.tasks[start:])
            else:
                graph.tasks.append(name)
                graph.artifacts += [(producer, name, key) for producer, key in sources.values()]


def _route(graph: Graph) -> tuple[list[tuple[str, str, str]], dict[tuple[str, str], list[str]]]:
    """Return the artifacts drawn between neighbours, and those drawn as one line below with an end at each consumer.

    Two neighbours have room for one artifact between them: of several, those that go further are drawn below only.
    """
    place = {name: number for number, name in enumerate(graph.tasks)}
    far = {(producer, key) for producer, consumer, key in graph.artifacts if place[consumer] - place[producer] > 1}
    beside: list[tuple[str, str, str]] = []
    lines: dict[tuple[str, str], list[str]] = {}
    for producer, consumer, key in graph.artifacts:
        between = [other for start, end, other in graph.artifacts if (start, end) == (producer, consumer)]
        near = place[consumer] - place[producer] == 1
        if near and ((producer, key) not in far or len(between) == 1):
            beside.append((producer, consumer, key))
        else:
            lines.setdefault((producer, key), []).append(consumer)
    order = sorted(lines, key=lambda line: -place[line[0]])
    return beside, {line: lines[line] for line in order}


def draw() -> Drawing:
    """Draw the tasks in a row, arcs of artifacts above and below it, and a frame around what a condition decides."""
    graph = read_graph()
    beside, lines = _route(graph)
    bottom = _ROW + _HEIGHT + 40 + 34 * len(lines)
    width = _LEFT * 2 + len(graph.tasks) * (_WIDTH + _GAP) - _GAP + 12
    drawing = Drawing(width, bottom + 22, "The compiled pipeline: " + ", ".join(graph.tasks))
    boxes = {name: Box(_LEFT + n * (_WIDTH + _GAP), _ROW, _WIDTH, _HEIGHT) for n, name in enumerate(graph.tasks)}
    for depth, (question, names) in enumerate(graph.conditions):
        left, right = boxes[names[0]].left - 26, boxes[names[-1]].right + 26 - 10 * depth
        top = 18 + 38 * depth
        drawing.rectangle(Box(left, top, right - left, bottom - top - 6 * depth), "group", radius=10)
        drawing.text(left + 12, top + 20, question, style="small", anchor="start")
    for producer, consumer, key in beside:
        start, end = boxes[producer], boxes[consumer]
        drawing.arrow((start.right, _ROW + 24), (end.left - 2, _ROW + 24))
        label = "corpus" if producer == "importer" else key
        drawing.text((start.right + end.left) / 2, _ROW + 16, label, style="small")
    for level, ((producer, key), consumers) in enumerate(lines.items()):
        y = _ROW + _HEIGHT + 32 + 34 * level
        x = boxes[producer].right - 22
        drawing.text(x + 6, y - 5, key, style="small", anchor="start")
        for consumer in consumers:
            up = boxes[consumer].left + 12 + 16 * level
            drawing.arrow((x, _ROW + _HEIGHT), (x, y), (up, y), (up, _ROW + _HEIGHT + 2))
    for name, box in boxes.items():
        drawing.box(box, [name], style="soft" if name == "importer" else "box")
    return drawing
