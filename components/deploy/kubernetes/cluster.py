"""The cluster that serves, as deploy uses it."""

from __future__ import annotations

from components.core.errors import ActionNeeded, InputError
from components.core.kubernetes.client import KubernetesClient
from components.core.kubernetes.connection import connect_api
from components.core.kubernetes.errors import ApiUser, UnknownField, WriteConflict
from components.core.kubernetes.resource_kinds import Object
from components.deploy.labels import MANAGED_BY

_DEPLOY = ApiUser(
    stage="deploy",
    need="target=kserve",
    without_cluster="set target=local to serve on this machine",
    namespace_setting="serving_namespace",
    manifest="manifests/rbac",
    field_manager=MANAGED_BY,
)


class Cluster(KubernetesClient):
    """Client of one namespace of the cluster that serves."""

    def apply(self, body: Object, *, dry_run: bool = False) -> Object:
        """Apply the object on the server's side and return it; fields that others own are never taken from them.

        Raises ActionNeeded when somebody else owns a field, InputError for a KServe that is too old.
        """
        what = f"{body['kind']} {body['metadata']['name']}"
        try:
            return super().apply(body, dry_run=dry_run)
        except WriteConflict as conflict:
            raise ActionNeeded(
                f"{what} is managed by somebody else too ({conflict}): let only one of them write it (target=gitops "
                f"when Argo CD or Flux does), or choose another service_name"
            ) from None
        except UnknownField as error:
            raise InputError(
                f"the cluster's KServe does not know a field of {what} ({error}): use KServe 0.15 or later"
            ) from None


def connect(namespace: str) -> Cluster:
    """Return a client of the cluster that this pod runs in, or of the kubeconfig's.

    An empty ``namespace`` stands for the pod's or the context's own. Raises InputError when there is no cluster.
    """
    api, own_namespace = connect_api(_DEPLOY)
    return Cluster(api, namespace or own_namespace, _DEPLOY)
