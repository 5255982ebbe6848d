"""Kinds of Kubernetes objects that the stages read and write, and where each lies in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True)
class ResourceKind:
    """Kind, API group, version and plural name; ``product`` is what a cluster without the kind has to install."""

    kind: str
    group: str
    version: str
    plural: str
    product: str = ""

    @property
    def root(self) -> str:
        """Path of the API group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        """``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version


_TRAINER = "Kubeflow Trainer 2, or set trainer=here"
_KINDS = (
    ResourceKind("ServingRuntime", "serving.kserve.io", "v1alpha1", "servingruntimes", "KServe"),
    ResourceKind("InferenceService", "serving.kserve.io", "v1beta1", "inferenceservices", "KServe"),
    ResourceKind("HTTPRoute", "gateway.networking.k8s.io", "v1", "httproutes", "Gateway API"),
    ResourceKind("Application", "argoproj.io", "v1alpha1", "applications", "Argo CD"),
    ResourceKind("Kustomization", "kustomize.toolkit.fluxcd.io", "v1", "kustomizations", "Flux"),
    ResourceKind(
        "TrainJob", "trainer.kubeflow.org", "v1alpha1", "trainjobs", "Kubeflow Trainer 2, or set trainer=here"
    ),
    ResourceKind("Deployment", "apps", "v1", "deployments"),
    ResourceKind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets"),
    ResourceKind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
    ResourceKind("Lease", "coordination.k8s.io", "v1", "leases"),
    ResourceKind("Service", "", "v1", "services"),
    ResourceKind("ServiceAccount", "", "v1", "serviceaccounts"),
    ResourceKind("ConfigMap", "", "v1", "configmaps"),
    ResourceKind("Pod", "", "v1", "pods"),
    ResourceKind("Event", "", "v1", "events"),
)
KINDS = {entry.kind: entry for entry in _KINDS}
