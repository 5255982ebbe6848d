"""The Kubernetes API as deploy uses it: a few verbs on a few kinds, through the official client."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config, dynamic
from kubernetes.config import ConfigException

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.deploy.labels import MANAGED_BY, Object

# Where each kind lies in the API.
KINDS = {
    "ServingRuntime": ("serving.kserve.io", "v1alpha1", "servingruntimes"),
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
    "Deployment": ("apps", "v1", "deployments"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "HTTPRoute": ("gateway.networking.k8s.io", "v1", "httproutes"),
    "Application": ("argoproj.io", "v1alpha1", "applications"),
    "Kustomization": ("kustomize.toolkit.fluxcd.io", "v1", "kustomizations"),
    "Lease": ("coordination.k8s.io", "v1", "leases"),
    "Service": ("", "v1", "services"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Pod": ("", "v1", "pods"),
    "Event": ("", "v1", "events"),
}
_INSTALL = {
    "gateway.networking.k8s.io": "Gateway API",
    "argoproj.io": "Argo CD",
    "kustomize.toolkit.fluxcd.io": "Flux",
}
_TRY_AGAIN = {429, 500, 502, 503, 504}
_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5
_TIMEOUT_SECONDS = (5, 60)
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_log = logging.getLogger(__name__)


class Conflict(Exception):
    """Somebody else created or changed the object first: read it again."""


class Cluster:
    """One namespace of a cluster. Every method raises StageError: ActionNeeded when a right is missing or the cluster
    refuses an object, InputError for an API that it does not have, Transient when it stays unavailable."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        # Its paths are known: nothing is discovered. Of the client, `request` alone is the same from 30 to 37.
        self._api = dynamic.DynamicClient(api, discoverer=lambda *_: None)
        self.namespace = namespace

    def get(self, kind: str, name: str) -> Object | None:
        """The object; None when there is none."""
        return self._send("GET", kind, name, missing=True)

    def list(self, kind: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """Objects that have the labels and fields, in the selectors' own syntax."""
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        return self._send("GET", kind, query=[(name, value) for name, value in query if value])["items"]

    def create(self, body: Object) -> Object:
        """The new object. Raises Conflict when there is one of its name."""
        return self._send("POST", body["kind"], body=body, name="")

    def replace(self, body: Object) -> Object:
        """The changed object. Raises Conflict when it is no longer of ``body``'s resourceVersion, or is gone."""
        found = self._send("PUT", body["kind"], body["metadata"]["name"], body=body, missing=True)
        if found is None:
            raise Conflict
        return found

    def apply(self, body: Object, *, dry_run: bool = False) -> Object:
        """The object after server-side apply: fields that others own are never taken from them."""
        query = [("fieldManager", MANAGED_BY), ("force", "false"), *([("dryRun", "All")] if dry_run else [])]
        try:
            return self._send("PATCH", body["kind"], body["metadata"]["name"], body=body, query=query)
        except Conflict as conflict:
            raise ActionNeeded(
                f"{_named(body['kind'], body['metadata']['name'])} is managed by somebody else too ({conflict}): let "
                f"only one of them write it (target=gitops when Argo CD or Flux does), or choose another service_name"
            ) from None

    def delete(self, kind: str, name: str) -> None:
        """Delete the object; that there is none is no error."""
        self._send("DELETE", kind, name, missing=True)

    def log(self, pod: str, container: str, *, lines: int, previous: bool) -> str:
        """The last lines of a container."""
        query = [("container", container), ("tailLines", str(lines)), ("previous", str(previous).lower())]
        return self._send("GET", "Pod", f"{pod}/log", query=query, as_text=True)

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether deploy has the right to ``verb`` in the namespace."""
        resource, _, sub = resource.partition("/")
        wanted = {"namespace": self.namespace, "verb": verb, "group": group, "resource": resource, "subresource": sub}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {name: value for name, value in wanted.items() if value}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return json.loads(self._request("POST", path, "a SelfSubjectAccessReview", body=review))["status"]["allowed"]

    def _send(
        self,
        method: str,
        kind: str,
        name: str = "",
        *,
        body: Object | None = None,
        query: list[tuple[str, str]] | None = None,
        missing: bool = False,
        as_text: bool = False,
    ) -> Any:
        group, version, plural = KINDS[kind]
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        path = f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")
        try:
            text = self._request(method, path, _named(kind, name), body=body, query=query)
        except _NotFound as error:
            if missing and error.is_object:
                return None
            raise InputError(
                f"the cluster does not know {group or 'core'}/{version} {kind}: install {_INSTALL.get(group, 'KServe')}"
            ) from None
        return text if as_text else json.loads(text)

    def _request(self, method: str, path: str, what: str, *, body: Object | None = None, query: Any = None) -> str:
        """The answer to one request, repeated while the API server is busy or away."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), 10.0))
            try:
                response = self._api.request(
                    method,
                    path,
                    body=body,
                    query_params=query or [],
                    header_params={"Accept": "*/*"},
                    content_type=_content_type(method),
                    serialize=False,
                    _request_timeout=_TIMEOUT_SECONDS,
                )
                return response.data.decode("utf-8", errors="replace")
            except client.ApiException as error:
                problem = f"{error.status} {_message(error)}"
                if error.status not in _TRY_AGAIN or _is_final(problem):
                    raise _explained(error, method, what, self.namespace) from None
            except urllib3.exceptions.HTTPError as error:
                problem = str(error)
            _log.info("%s %s: %s; again", method, what, problem)
        raise Transient(f"the Kubernetes API did not answer {_ATTEMPTS} times ({method} {what}: {problem}): run again")


def connect(namespace: str) -> Cluster:
    """The cluster that this pod runs in, or the kubeconfig's; ``namespace`` empty is the pod's or the context's own.

    Raises InputError when there is neither.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
        own = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.is_file() else ""
    except ConfigException:
        file = os.environ.get("KUBECONFIG") or None
        try:
            config.load_kube_config(file, client_configuration=settings)
            own = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
        except (ConfigException, OSError) as error:
            raise InputError(
                f"target=kserve needs a cluster, and there is neither a pod's service account nor a usable kubeconfig "
                f"({' '.join(str(error).split())}): set target=local to serve on this machine"
            ) from None
    settings.retries = False
    return Cluster(client.ApiClient(settings), namespace or own)


class _NotFound(Exception):
    def __init__(self, is_object: bool) -> None:
        super().__init__()
        self.is_object = is_object


def _content_type(method: str) -> str:
    return "application/apply-patch+yaml" if method == "PATCH" else "application/json"


def _named(kind: str, name: str) -> str:
    return f"{kind} {name}" if name else kind


def _is_final(problem: str) -> bool:
    """The API server answers 500 to an applied object with an unknown field; asking again does not help."""
    return "field not declared in schema" in problem or "failed to create typed patch object" in problem


def _explained(error: client.ApiException, method: str, what: str, namespace: str) -> Exception:
    """The failure that says what to change."""
    message = _message(error)
    if not error.status:
        return ActionNeeded(f"the Kubernetes API is not believed ({message}): check the certificate authority given")
    if error.status == 404 and _details(error).get("kind") == "namespaces":
        return InputError(f"there is no namespace {namespace}: create it, or change serving_namespace")
    if error.status == 404:
        return _NotFound(_reason(error) == "NotFound" and bool(_details(error).get("name")))
    if "denied the request" in message or "exceeded quota" in message or "violates PodSecurity" in message:
        return ActionNeeded(f"the cluster refuses {what} in namespace {namespace}: {message}")
    if error.status == 409:
        return Conflict(message)
    if _is_final(message):
        return InputError(f"the cluster's KServe does not know a field of {what} ({message}): use KServe 0.15 or later")
    if error.status in (401, 403):
        return ActionNeeded(f"deploy may not {method} {what} in namespace {namespace} ({message}): see manifests/rbac")
    if error.status in (400, 422):
        return InputError(f"the cluster finds {what} invalid: {message}")
    return StageError(f"{method} {what}: {error.status} {message}")


def _status(error: client.ApiException) -> dict[str, Any]:
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _reason(error: client.ApiException) -> str:
    return str(_status(error).get("reason", ""))


def _details(error: client.ApiException) -> dict[str, Any]:
    return _status(error).get("details") or {}


def _message(error: client.ApiException) -> str:
    """What the API server says, on one line."""
    text = _status(error).get("message") or error.body or error.reason or ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return " ".join(text.split())[:600]
