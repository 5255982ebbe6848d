"""Errors of the Kubernetes API as errors that say what a person can change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from components.core.errors import ActionNeeded, InputError, StageError
from components.core.kubernetes.resource_kinds import Object, ResourceKind


class WriteConflict(Exception):
    """Somebody else created or changed the object first: read it again."""


class UnknownField(InputError):
    """The cluster's version of the kind does not have a field of the object."""


class NotFound(InputError):
    """There is no such object."""


@dataclass(frozen=True)
class ApiRequest:
    """A request to the API server: ``verb`` as a Role calls it, ``what`` is kind and name of the object.

    ``resource`` is None for what every cluster has.
    """

    method: str
    path: str
    verb: str
    what: str
    body: Object | None = None
    query: Sequence[tuple[str, str]] = ()
    resource: ResourceKind | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


@dataclass(frozen=True)
class ApiUser:
    """The stage that talks to the cluster, as errors name it.

    ``need`` is the setting that needs a cluster, ``without_cluster`` what to set instead, ``namespace_setting`` names
    the namespace, ``manifest`` grants the rights. ``field_manager`` owns the fields that are applied.
    """

    stage: str
    need: str
    without_cluster: str
    namespace_setting: str
    manifest: str
    field_manager: str


def is_unknown_field(problem: str) -> bool:
    """Return whether an answer is about a field that the cluster's version does not have.

    The API server answers 500 to an applied object with such a field; sending it again does not help.
    """
    return "field not declared in schema" in problem or "failed to create typed patch object" in problem


def translate_api_error(
    error: client.ApiException, request: ApiRequest, user: ApiUser, namespace: str
) -> StageError | WriteConflict:
    """Return the error that says what to change.

    Args:
        error: The answer of the API server, or what kept the connection from being made.
        request: What was sent.
        user: Who sent it.
        namespace: The namespace that it was about.
    """
    message, what = read_message(error), request.what
    if not error.status:
        return ActionNeeded(
            f"the certificate of the Kubernetes API cannot be verified ({message}): check the certificate authority "
            f"that the kubeconfig or the pod names"
        )
    if error.status == 404:
        return _translate_404(error, request, user, namespace)
    if "denied the request" in message or "exceeded quota" in message or "violates PodSecurity" in message:
        return ActionNeeded(f"the cluster refuses {what} in namespace {namespace}: {message}")
    if error.status == 409:
        return WriteConflict(message)
    if is_unknown_field(message):
        return UnknownField(message)
    if error.status in (401, 403):
        return ActionNeeded(f"{user.stage} may not {request} in namespace {namespace} ({message}): see {user.manifest}")
    if error.status in (400, 422):
        return InputError(f"the cluster finds {what} invalid: {message}")
    return StageError(f"{request}: {error.status} {message}")


def _translate_404(error: client.ApiException, request: ApiRequest, user: ApiUser, namespace: str) -> InputError:
    """The namespace, the object or the whole kind may be missing."""
    details = _read_status(error).get("details") or {}
    if details.get("kind") == "namespaces":
        return InputError(f"there is no namespace {namespace}: create it, or change {user.namespace_setting}")
    if _read_status(error).get("reason") == "NotFound" and details.get("name"):
        return NotFound(f"there is no {request.what} in namespace {namespace}")
    resource = request.resource
    kind = f"{resource.api_version} {resource.kind}" if resource else request.what
    advice = f": install {resource.product}" if resource and resource.product else ""
    return InputError(f"the cluster does not know {kind}{advice}")


def read_message(error: client.ApiException) -> str:
    """Return the message of the API server on one line."""
    text = _read_status(error).get("message") or error.body or error.reason or ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return " ".join(text.split())[:600]


def _read_status(error: client.ApiException) -> dict[str, Any]:
    """Return the ``Status`` object of the answer; empty when it has none."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
