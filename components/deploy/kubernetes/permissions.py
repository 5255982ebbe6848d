"""The rights that deploy needs in the namespace, asked for before anything is written."""

from __future__ import annotations

from components.core.errors import ActionNeeded
from components.deploy.component import DeployConfig
from components.deploy.kubernetes.cluster import Cluster

Rules = dict[tuple[str, str], tuple[str, ...]]
# (API group, resource) -> verbs; manifests/rbac/deploy.yaml grants exactly these, and those of the options below.
ALWAYS: Rules = {
    ("serving.kserve.io", "servingruntimes"): ("create", "patch", "delete"),
    ("serving.kserve.io", "inferenceservices"): ("get", "list", "create", "patch", "delete"),
    ("", "services"): ("get", "create", "update", "patch", "delete"),
    ("policy", "poddisruptionbudgets"): ("create", "patch", "delete"),
    ("apps", "deployments"): ("get",),
    ("", "pods"): ("list",),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
    ("", "configmaps"): ("get", "create", "update"),
    ("coordination.k8s.io", "leases"): ("get", "create", "update"),
}
NETWORK_POLICIES: Rules = {("networking.k8s.io", "networkpolicies"): ("create", "patch", "delete")}
SERVICE_ACCOUNTS: Rules = {("", "serviceaccounts"): ("create", "patch", "delete")}
ROUTES: Rules = {("gateway.networking.k8s.io", "httproutes"): ("create", "patch")}


def list_required_rules(config: DeployConfig) -> Rules:
    """Return the rights that a deployment with these settings uses."""
    rules = dict(ALWAYS)
    rules |= NETWORK_POLICIES if config.network_policy_namespaces is not None else {}
    rules |= SERVICE_ACCOUNTS if config.storage_secret_name and not config.serving_service_account else {}
    rules |= ROUTES if config.strategy == "canary" else {}
    return rules


def require_permissions(cluster: Cluster, config: DeployConfig) -> None:
    """Raise ActionNeeded with the missing rules, as a Role would contain them."""
    missing: list[str] = []
    for (group, resource), verbs in list_required_rules(config).items():
        refused = [verb for verb in verbs if not cluster.may(verb, group, resource)]
        if refused:
            missing.append(f'{{apiGroups: ["{group}"], resources: [{resource}], verbs: [{", ".join(refused)}]}}')
    if missing:
        raise ActionNeeded(
            f"the service account of deploy lacks rights in namespace {cluster.namespace}: apply "
            f"manifests/rbac/deploy.yaml there, or add to its Role {'; '.join(missing)}"
        )
