"""A few verbs on a few kinds of the Kubernetes API, on the official client."""

from __future__ import annotations

import builtins
import json
import logging
from collections.abc import Sequence
from typing import Any

import urllib3
from kubernetes import client, dynamic

from components.core.errors import Transient
from components.core.kubernetes.errors import (
    ApiRequest,
    ApiUser,
    NotFound,
    WriteConflict,
    is_unknown_field,
    read_message,
    translate_api_error,
)
from components.core.kubernetes.resource_kinds import KINDS, Object
from components.core.retry import RetryPolicy, TryAgain, parse_retry_after

RETRIES = RetryPolicy(attempts=6, first_wait=0.5, longest_wait=10.0)
_RETRY_STATUSES = frozenset({429, 500, 502, 503, 504})
_TIMEOUT_SECONDS = (5, 60)  # To connect, and to read.
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_log = logging.getLogger(__name__)
Query = Sequence[tuple[str, str]]


class KubernetesClient:
    """Client of one namespace of a cluster.

    Every method raises ActionNeeded when a right is missing or the cluster refuses an object, InputError for a kind
    that it does not have, Transient when it stays unavailable.
    """

    def __init__(self, api: client.ApiClient, namespace: str, user: ApiUser) -> None:
        # Paths are known, so nothing is discovered. `request` is the one call that is the same from version 30 to 37.
        self._api = dynamic.DynamicClient(api, discoverer=lambda *_: None)
        self._user = user
        self.namespace = namespace

    def get(self, kind: str, name: str) -> Object | None:
        """Return the object; None when there is none."""
        try:
            return self._send("GET", kind, name)
        except NotFound:
            return None

    def list(self, kind: str, *, labels: str = "", fields: str = "") -> builtins.list[Object]:
        """Return the objects that match a label selector and a field selector, in Kubernetes' syntax."""
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        items: list[Object] = self._send("GET", kind, query=[(name, value) for name, value in query if value])["items"]
        return items

    def create(self, body: Object) -> Object:
        """Create the object and return it. Raises WriteConflict when there is one of its name."""
        return self._send("POST", body["kind"], body=body)

    def replace(self, body: Object) -> Object:
        """Replace the object and return it.

        Raises WriteConflict when it no longer has the resourceVersion of ``body``, or is gone.
        """
        try:
            return self._send("PUT", body["kind"], body["metadata"]["name"], body=body)
        except NotFound:
            raise WriteConflict from None

    def apply(self, body: Object, *, dry_run: bool = False) -> Object:
        """Apply the object on the server's side and return it.

        Raises WriteConflict when somebody else owns one of the fields, UnknownField for one that the cluster lacks.
        """
        query = [("fieldManager", self._user.field_manager), ("force", "false")]
        query += [("dryRun", "All")] if dry_run else []
        return self._send("PATCH", body["kind"], body["metadata"]["name"], body=body, query=query)

    def delete(self, kind: str, name: str) -> None:
        """Delete the object, if there is one."""
        try:
            self._send("DELETE", kind, name)
        except NotFound:
            return

    def read_log(self, pod: str, container: str, *, lines: int, previous: bool = False) -> str:
        """Return the last ``lines`` lines of a container, or of the one that ran there before its restart."""
        query = [("container", container), ("tailLines", str(lines)), ("previous", str(previous).lower())]
        return self._send_for_text("GET", "Pod", f"{pod}/log", query=query)

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Return whether the caller has the right to ``verb`` the resource in the namespace."""
        resource, _, subresource = resource.partition("/")
        attributes = {
            "namespace": self.namespace,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {name: value for name, value in attributes.items() if value}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        request = ApiRequest("POST", path, "create", "a SelfSubjectAccessReview", review)
        return bool(json.loads(self._request(request))["status"]["allowed"])

    def _send(self, method: str, kind: str, name: str = "", *, body: Object | None = None, query: Query = ()) -> Object:
        answer: Object = json.loads(self._send_for_text(method, kind, name, body=body, query=query))
        return answer

    def _send_for_text(
        self, method: str, kind: str, name: str = "", *, body: Object | None = None, query: Query = ()
    ) -> str:
        """Return the answer to a request about an object, or about all of its kind when ``name`` is empty."""
        resource = KINDS[kind]
        path = f"{resource.root}/namespaces/{self.namespace}/{resource.plural}" + (f"/{name}" if name else "")
        verb = _VERBS.get(method) or ("get" if name else "list")
        title = name or (body["metadata"]["name"] if body else "")
        return self._request(ApiRequest(method, path, verb, f"{kind} {title}".rstrip(), body, query, resource))

    def _request(self, request: ApiRequest) -> str:
        """Return the answer, and send the request again while the API server is busy or away."""
        try:
            return RETRIES.retrying(log=_log)(self._request_once, request)
        except TryAgain as error:
            raise Transient(
                f"the Kubernetes API did not answer {RETRIES.attempts} times ({error}): run again"
            ) from None

    def _request_once(self, request: ApiRequest) -> str:
        try:
            response: Any = self._api.request(
                request.method,
                request.path,
                body=request.body,
                query_params=list(request.query),
                header_params={"Accept": "*/*"},
                content_type="application/apply-patch+yaml" if request.method == "PATCH" else "application/json",
                serialize=False,
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except client.ApiException as error:
            message = read_message(error)
            if error.status in _RETRY_STATUSES and not is_unknown_field(message):
                wait = parse_retry_after((error.headers or {}).get("Retry-After", ""))
                raise TryAgain(f"{request}: {error.status} {message}", wait_seconds=wait) from None
            raise translate_api_error(error, request, self._user, self.namespace) from None
        except urllib3.exceptions.HTTPError as error:
            raise TryAgain(f"{request}: {error}") from None
        text: str = response.data.decode("utf-8", errors="replace")
        return text
