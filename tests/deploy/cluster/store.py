"""The objects of a Kubernetes API server: what is stored, what is refused, and in which words.

Codes and reasons are those of kube-apiserver 1.36, which answers an applied object with an unknown field with 500;
messages are worded as there, without the parts that nobody reads.
"""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.schemas import problems

Object = dict[str, Any]
GROUPS = {
    "servingruntimes": "serving.kserve.io",
    "inferenceservices": "serving.kserve.io",
    "deployments": "apps",
    "poddisruptionbudgets": "policy",
    "networkpolicies": "networking.k8s.io",
    "httproutes": "gateway.networking.k8s.io",
    "applications": "argoproj.io",
    "kustomizations": "kustomize.toolkit.fluxcd.io",
    "serviceaccounts": "",
    "resourcequotas": "",
    "limitranges": "",
    "leases": "coordination.k8s.io",
    "services": "",
    "configmaps": "",
    "pods": "",
    "events": "",
}


class Refusal(Exception):
    """An answer other than success, as a ``Status`` object."""

    def __init__(self, code: int, reason: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "code": code, "reason": reason, "message": message, "details": details,
        }  # fmt: skip


@dataclass
class Store:
    """One namespace. ``admission`` may refuse an object that is created, applied or replaced, dry runs included."""

    namespace: str = "team-a"
    installed: set[str] = field(default_factory=lambda: set(GROUPS))
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    owners: dict[tuple[str, str], dict[str, set[tuple]]] = field(default_factory=dict)
    admission: Callable[[Object], None] = lambda _: None
    lock: threading.RLock = field(default_factory=threading.RLock)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    def get(self, plural: str, name: str) -> Object:
        if (plural, name) not in self.objects:
            where = f"{plural}.{GROUPS[plural]}" if GROUPS[plural] else plural
            raise Refusal(404, "NotFound", f'{where} "{name}" not found', name=name, kind=plural)
        return copy.deepcopy(self.objects[plural, name])

    def list(self, plural: str, labels: dict[str, str], fields: dict[str, str]) -> list[Object]:
        found = [item for (kind, _), item in sorted(self.objects.items()) if kind == plural]
        return copy.deepcopy(
            [
                item
                for item in found
                if labels.items() <= item["metadata"].get("labels", {}).items()
                and all(item.get(key) == value for key, value in fields.items())
            ]
        )

    def create(self, plural: str, body: Object, *, dry_run: bool = False) -> Object:
        name = body["metadata"]["name"]
        if (plural, name) in self.objects:
            message = f'{plural} "{name}" already exists'
            raise Refusal(409, "AlreadyExists", message, name=name, kind=plural)
        self.admission(body)
        body = copy.deepcopy(body)
        body["metadata"] |= {"namespace": self.namespace, "uid": str(uuid.uuid4()), "generation": 1}
        return self._store(plural, body, dry_run=dry_run)

    def replace(self, plural: str, name: str, body: Object) -> Object:
        old = self.get(plural, name)
        version = body["metadata"].get("resourceVersion")
        if version is not None and version != old["metadata"]["resourceVersion"]:
            message = (
                f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified; please apply your '
                f"changes to the latest version and try again"
            )
            raise Refusal(409, "Conflict", message, name=name, kind=plural)
        self.admission(body)
        return self._changed(plural, old, copy.deepcopy(body))

    def apply(self, plural: str, name: str, body: Object, *, manager: str, force: bool, dry_run: bool) -> Object:
        """Server-side apply: each manager owns the fields that it sent; sending fewer removes the others."""
        self._check_fields(body, name)
        old = self.objects.get((plural, name))
        owners = copy.deepcopy(self.owners.get((plural, name), {}))
        sent = dict(_leaves(_owned(body)))
        if old:
            self._check_conflicts(old, owners, sent, manager, force)
        new = copy.deepcopy(old) if old else {"metadata": {}}
        for path in owners.get(manager, set()) - set(sent):
            _remove(new, path)
        for path, value in sent.items():
            _set(new, path, copy.deepcopy(value))
        new |= {"apiVersion": body["apiVersion"], "kind": body["kind"]}
        new["metadata"]["name"] = name
        self.admission(new)
        owners[manager] = set(sent)
        if not old:
            found = self.create(plural, new, dry_run=dry_run)
        else:
            found = copy.deepcopy(old) if dry_run else self._changed(plural, old, new)
        if not dry_run:
            self.owners[plural, name] = owners
        return found

    def delete(self, plural: str, name: str) -> Object:
        found = self.get(plural, name)
        del self.objects[plural, name]
        self.owners.pop((plural, name), None)
        return found

    def set_status(self, plural: str, name: str, status: Object) -> None:
        """As a controller does, without a new generation."""
        self.objects[plural, name]["status"] = status
        self.objects[plural, name]["metadata"]["resourceVersion"] = str(next(self.versions))

    def _check_fields(self, body: Object, name: str) -> None:
        for path, message in problems(body):
            version = f"{body['apiVersion']}, Kind={body['kind']}"
            if "Additional properties" in message:
                unknown = message.split("'")[1]
                text = f"failed to create typed patch object ({self.namespace}/{name}; {version}): "
                raise Refusal(500, "", f"{text}{path}.{unknown}: field not declared in schema")
            raise Refusal(422, "Invalid", f'{body["kind"]} "{name}" is invalid: {path[1:]}: {message}')

    def _check_conflicts(
        self, old: Object, owners: dict[str, set[tuple]], sent: dict[tuple, Any], manager: str, force: bool
    ) -> None:
        present = dict(_leaves(_owned(old)))
        for other in [other for other in owners if other != manager]:
            contested = [path for path in sorted(owners[other] & set(sent)) if present.get(path) != sent[path]]
            if contested and not force:
                where = "".join(f".{part}" for part in contested[0])
                message = f'Apply failed with {len(contested)} conflict: conflict with "{other}": {where}'
                raise Refusal(409, "Conflict", message)
            owners[other] -= set(contested)

    def _changed(self, plural: str, old: Object, new: Object) -> Object:
        new["metadata"] = {**new["metadata"], **{k: old["metadata"][k] for k in ("uid", "generation", "namespace")}}
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if "status" in old:
            new["status"] = copy.deepcopy(old["status"])
        if new == old:
            return copy.deepcopy(old)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] += 1
        return self._store(plural, new)

    def _store(self, plural: str, body: Object, *, dry_run: bool = False) -> Object:
        body["metadata"]["resourceVersion"] = str(next(self.versions))
        if not dry_run:
            self.objects[plural, body["metadata"]["name"]] = body
        return copy.deepcopy(body)


def _owned(body: Object) -> Object:
    return {key: value for key, value in body.items() if key not in ("apiVersion", "kind", "status")}


def _leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Fields with an owner. Lists are atomic, as in KServe's schema nearly everywhere."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif path not in (("metadata", "name"), ("metadata", "namespace")):
        yield path, value


def _set(body: Object, path: tuple, value: Any) -> None:
    for key in path[:-1]:
        body = body.setdefault(key, {})
    body[path[-1]] = value


def _remove(body: Object, path: tuple) -> None:
    for key in path[:-1]:
        body = body.get(key, {})
    body.pop(path[-1], None)
