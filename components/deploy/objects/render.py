"""The Kubernetes objects of a release: plain dictionaries, the same bytes for the same settings and model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.bundle import Bundle
from components.deploy.backends.compatibility import check_compatibility
from components.deploy.backends.contracts import PORT, Contract
from components.deploy.component import DeployConfig
from components.deploy.labels import (
    CHECKPOINT_DIGEST,
    MODEL_DIGEST,
    RELEASE,
    as_object,
    direct_name,
    live_name,
    metadata_labels,
    pod_selector,
    service_url,
)
from components.deploy.objects.kserve_objects import inference_service, runtime
from components.deploy.objects.nim_operator import nim_service
from components.deploy.settings.serving_settings import ServingPods

_LONGEST_LABEL = 63


@dataclass(frozen=True)
class Release:
    """A model as one service in the cluster; its name follows from everything that a pod of it could depend on."""

    name: str
    namespace: str
    service: str
    model_digest: str
    checkpoint_digest: str
    objects: tuple[Object, ...]

    def url(self, domain: str) -> str:
        """Return the address of this release, whether it is live or not."""
        return service_url(direct_name(self.name), self.namespace, domain)

    def about(self, model_uri: str) -> dict[str, str]:
        """Return the fields of ``deployment.json`` about a release in a cluster."""
        return {
            "release": self.name,
            "namespace": self.namespace,
            "model_uri": model_uri,
            "checkpoint_digest": self.checkpoint_digest,
        }

    def live_url(self, domain: str) -> str:
        """Return the address of the service for clients, whichever release is live."""
        return service_url(live_name(self.service), self.namespace, domain)


def render(config: DeployConfig, bundle: Bundle, contract: Contract, *, model_uri: str, namespace: str) -> Release:
    """Return the objects that serve ``model_uri`` as ``contract`` says, in the order in which they are applied.

    Nothing in them is ever changed: other settings or another model make a release of another name. Raises
    InputError for a model that the image would serve otherwise than it was trained, and for names that are too long.
    """
    check_compatibility(config, bundle, contract)
    objects = _objects("", config, bundle, contract, model_uri, namespace)
    fingerprint = hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{config.service_name}-r-{fingerprint}"
    if len(host := f"{name}-predictor-{namespace}") > _LONGEST_LABEL:
        raise InputError(
            f"service_name {config.service_name} and namespace {namespace} together are "
            f"{len(host) - _LONGEST_LABEL} letters too long for KServe's host names: shorten service_name"
        )
    return Release(
        name,
        namespace,
        config.service_name,
        bundle.manifest.digest,
        bundle.manifest.checkpoint_digest,
        tuple(_objects(name, config, bundle, contract, model_uri, namespace)),
    )


def live_service(release: Release) -> Object:
    """Return the Service that clients use, when ``release`` is live."""
    service = _service(live_name(release.service), release.name, metadata_labels(release.service), release.namespace)
    service["metadata"]["annotations"] = live_annotations(release)
    return service


def live_annotations(release: Release) -> dict[str, str]:
    """Return the annotations by which the live Service names the release behind it."""
    return {
        RELEASE: release.name,
        MODEL_DIGEST: release.model_digest,
        CHECKPOINT_DIGEST: release.checkpoint_digest,
    }


def as_files(objects: list[Object]) -> dict[str, str]:
    """Return one YAML file for each of ``objects`` and a ``kustomization.yaml`` that names them."""
    files = {
        f"{item['kind'].lower()}-{item['metadata']['name']}.yaml": yaml.safe_dump(item, sort_keys=False, width=120)
        for item in objects
    }
    return files | {"kustomization.yaml": kustomization(list(files))}


def kustomization(resources: list[str]) -> str:
    """Return a ``kustomization.yaml`` that names ``resources``."""
    content = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    return yaml.safe_dump(content, sort_keys=False)


def write_manifests(objects: list[Object], directory: Path) -> None:
    """Write ``as_files`` into the new ``directory``."""
    directory.mkdir(parents=True)
    for name, text in as_files(objects).items():
        (directory / name).write_text(text, encoding="utf-8")


def _objects(
    name: str, config: DeployConfig, bundle: Bundle, contract: Contract, model_uri: str, namespace: str
) -> list[Object]:
    labels = metadata_labels(config.service_name)
    around = [_service(direct_name(name), name, labels, namespace), _disruption_budget(name, labels, namespace)]
    if config.network_policy_namespaces is not None:
        around.append(_network_policy(name, labels, namespace, config.network_policy_namespaces))
    if config.backend == "nim-operator":
        return [nim_service(name, config, bundle, contract, labels, namespace, model_uri), *around]
    account = config.serving_service_account
    before = []
    if config.storage_secret_name and not account:
        account = f"{name}-models"
        before = [_service_account(account, config, labels, namespace)]
    return [
        *before,
        runtime(name, config, bundle, contract, labels, namespace),
        inference_service(name, config, bundle, contract, labels, namespace, model_uri, account),
        *around,
    ]


def _service_account(name: str, config: ServingPods, labels: dict[str, str], namespace: str) -> Object:
    """KServe's storage initializer takes the credentials from the Secrets that this lists."""
    pull = [{"name": config.image_pull_secret_name}] if config.image_pull_secret_name else []
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "secrets": [{"name": config.storage_secret_name}],
        "imagePullSecrets": pull,
        "automountServiceAccountToken": False,
    }


def _service(name: str, release: str, labels: dict[str, str], namespace: str) -> Object:
    ports = [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}]
    return as_object("v1", "Service", name, labels, namespace, {"selector": pod_selector(release), "ports": ports})


def _disruption_budget(name: str, labels: dict[str, str], namespace: str) -> Object:
    # Not minAvailable: with one replica that would block every drain of its node.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": pod_selector(name)}}
    return as_object("policy/v1", "PodDisruptionBudget", name, labels, namespace, spec)


def _network_policy(name: str, labels: dict[str, str], namespace: str, others: list[str]) -> Object:
    """Pods of the namespace, which clients and deploy are, and of ``others``; the node's probes always reach pods."""
    allowed: list[Object] = [{"podSelector": {}}]
    allowed += [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other}}} for other in others]
    spec = {
        "podSelector": {"matchLabels": pod_selector(name)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": allowed, "ports": [{"port": PORT, "protocol": "TCP"}]}],
    }
    return as_object("networking.k8s.io/v1", "NetworkPolicy", name, labels, namespace, spec)
