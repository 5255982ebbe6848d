"""Finds the cluster: the one that this pod runs in, or the kubeconfig's."""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes import client, config
from kubernetes.config import ConfigException

from components.core.errors import InputError
from components.core.kubernetes.errors import ApiUser

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect_api(user: ApiUser) -> tuple[client.ApiClient, str]:
    """Return the client of the cluster and the namespace of the pod or of the kubeconfig's context.

    Raises InputError when there is neither a pod's service account nor a usable kubeconfig.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
        namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.is_file() else ""
    except ConfigException:
        file = os.environ.get("KUBECONFIG") or None
        try:
            config.load_kube_config(file, client_configuration=settings)
            namespace = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
        except (ConfigException, OSError) as error:
            raise InputError(
                f"{user.need} needs a cluster, and there is neither a pod's service account nor a usable kubeconfig "
                f"({' '.join(str(error).split())}): {user.without_cluster}"
            ) from None
    # KubernetesClient retries by itself.
    settings.retries = False
    return client.ApiClient(settings), namespace


def is_in_pod() -> bool:
    """Return whether this process runs in a pod with a service account."""
    return _NAMESPACE_FILE.is_file()
