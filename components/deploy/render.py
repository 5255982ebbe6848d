"""The Kubernetes objects of a release: plain dictionaries, the same bytes for the same settings and model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.core.bundle import Bundle
from components.core.errors import InputError
from components.deploy.backends import PORT, Contract
from components.deploy.component import DeployConfig

GROUP = "nemotron-embed.kubeflow.org"
MODEL_DIGEST = f"{GROUP}/model-digest"
CHECKPOINT_DIGEST = f"{GROUP}/checkpoint-digest"
RELEASE = f"{GROUP}/release"
MANAGED_BY = "nemotron-embed-deploy"
_LONGEST_LABEL = 63
Object = dict[str, Any]


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
        """Where this release is reached, whether it is live or not."""
        return service_url(direct_name(self.name), self.namespace, domain)


def service_url(name: str, namespace: str, domain: str) -> str:
    """The address of a Service inside of the cluster."""
    return f"http://{name}.{namespace}.svc.{domain}"


def direct_name(release: str) -> str:
    """Name of the Service of one release. Not the release's own: KServe makes Services of that name in some modes."""
    return f"{release}-direct"


def live_name(service: str) -> str:
    """Name of the Service that clients use; its selector says which release is live."""
    return f"{service}-live"


def pod_selector(release: str) -> dict[str, str]:
    """The label that KServe gives the pods of an InferenceService in Standard mode."""
    return {"app": f"isvc.{release}-predictor"}


def render(config: DeployConfig, bundle: Bundle, contract: Contract, *, model_uri: str, namespace: str) -> Release:
    """The objects that serve ``model_uri`` as ``contract`` says, in the order in which they are applied.

    Nothing in them is ever changed: other settings or another model make a release of another name. Raises
    InputError for a model that the image would serve otherwise than it was trained, and for names that are too long.
    """
    contract.require(bundle)
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
    """The Service that clients use, when ``release`` is live."""
    service = _service(live_name(release.service), release.name, _metadata_labels(release.service), release.namespace)
    service["metadata"]["annotations"] = live_annotations(release)
    return service


def live_annotations(release: Release) -> dict[str, str]:
    """What the live Service says about the release behind it."""
    return {
        RELEASE: release.name,
        MODEL_DIGEST: release.model_digest,
        CHECKPOINT_DIGEST: release.checkpoint_digest,
    }


def write_manifests(objects: list[Object], directory: Path) -> None:
    """One YAML file for each of ``objects`` and a ``kustomization.yaml`` that names them."""
    directory.mkdir(parents=True)
    names = [f"{item['kind'].lower()}-{item['metadata']['name']}.yaml" for item in objects]
    for name, item in zip(names, objects, strict=True):
        (directory / name).write_text(yaml.safe_dump(item, sort_keys=False, width=120), encoding="utf-8")
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": names}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False), encoding="utf-8")


def _objects(
    name: str, config: DeployConfig, bundle: Bundle, contract: Contract, model_uri: str, namespace: str
) -> list[Object]:
    labels = _metadata_labels(config.service_name)
    return [
        _runtime(name, config, bundle, contract, labels, namespace),
        _inference_service(name, config, bundle, contract, labels, namespace, model_uri),
        _service(direct_name(name), name, labels, namespace),
        _disruption_budget(name, labels, namespace),
    ]


def _runtime(
    name: str, config: DeployConfig, bundle: Bundle, contract: Contract, labels: dict[str, str], namespace: str
) -> Object:
    spec: Object = {
        # autoSelect off: never taken for other InferenceServices.
        "supportedModelFormats": [{"name": contract.name, "version": "1", "autoSelect": False}],
        "protocolVersions": ["v2"],
        "multiModel": False,
        "annotations": {"prometheus.kserve.io/port": str(PORT), "prometheus.kserve.io/path": "/v1/metrics"},
        "containers": [_container(config, bundle, contract)],
        "volumes": _volumes(config, contract),
    }
    if config.image_pull_secret_name:
        spec["imagePullSecrets"] = [{"name": config.image_pull_secret_name}]
    return _object("serving.kserve.io/v1alpha1", "ServingRuntime", name, labels, namespace, spec)


def _container(config: DeployConfig, bundle: Bundle, contract: Contract) -> Object:
    environment: list[Object] = [
        {"name": key, "value": value}
        for key, value in contract.environment(bundle, config.served_model_name).items()
    ]  # fmt: skip
    if contract.is_nim and config.ngc_secret_name:
        reference = {"name": config.ngc_secret_name, "key": "NGC_API_KEY", "optional": True}
        environment.append({"name": "NGC_API_KEY", "valueFrom": {"secretKeyRef": reference}})
    container: Object = {
        "name": "kserve-container",
        "image": config.serving_image,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": environment,
        # Half an hour: the image starts, downloads what it needs and builds its sessions.
        "startupProbe": _probe("ready", period=10, failures=180),
        "readinessProbe": _probe("ready", period=10, failures=3),
        "livenessProbe": _probe("live", period=20, failures=6),
        "resources": _resources(config, contract),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": not contract.is_nim,
            "runAsNonRoot": True,
        },
        "volumeMounts": [{"name": "cache", "mountPath": contract.cache}],
    }
    if contract.is_nim:
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    if arguments := contract.arguments(config.served_model_name):
        container["args"] = arguments
    return container


def _probe(path: str, *, period: int, failures: int) -> Object:
    get = {"path": f"/v1/health/{path}", "port": PORT}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _volumes(config: DeployConfig, contract: Contract) -> list[Object]:
    volumes: list[Object] = [{"name": "cache", "emptyDir": {"sizeLimit": "30Gi" if contract.is_nim else "1Gi"}}]
    if contract.is_nim:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": config.shm_size}})
    return volumes


def gpu_count(config: DeployConfig, contract: Contract) -> int:
    """GPUs of each pod."""
    return contract.gpus if config.serving_gpu_count is None else config.serving_gpu_count


def _resources(config: DeployConfig, contract: Contract) -> Object:
    wanted = {"cpu": config.serving_cpu, "memory": config.serving_memory}
    if gpus := gpu_count(config, contract):
        wanted["nvidia.com/gpu"] = str(gpus)
    return {"requests": dict(wanted), "limits": dict(wanted)}


def _inference_service(
    name: str,
    config: DeployConfig,
    bundle: Bundle,
    contract: Contract,
    labels: dict[str, str],
    namespace: str,
    model_uri: str,
) -> Object:
    user = config.serving_run_as_user or contract.user
    predictor: Object = {
        "annotations": {MODEL_DIGEST: bundle.manifest.digest},
        "minReplicas": config.serving_replicas,
        "maxReplicas": config.serving_replicas,
        "terminationGracePeriodSeconds": 60,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "model": {
            "modelFormat": {"name": contract.name, "version": "1"},
            "runtime": name,
            "storageUri": model_uri,
            "resources": _resources(config, contract),
        },
    }
    if config.serving_service_account:
        predictor["serviceAccountName"] = config.serving_service_account
    if gpu_count(config, contract):
        predictor |= {"nodeSelector": config.serving_node_selector, "tolerations": config.serving_tolerations}
    labels = labels | {"networking.kserve.io/visibility": "cluster-local"}
    service = _object(
        "serving.kserve.io/v1beta1", "InferenceService", name, labels, namespace, {"predictor": predictor}
    )
    service["metadata"]["annotations"] = {
        # KServe's default mode differs from cluster to cluster.
        "serving.kserve.io/deploymentMode": config.kserve_mode,
        "serving.kserve.io/autoscalerClass": "none",
        "serving.kserve.io/enable-prometheus-scraping": "true",
        # The step that verifies has no identity in a mesh.
        "sidecar.istio.io/inject": "false",
    }
    return service


def _service(name: str, release: str, labels: dict[str, str], namespace: str) -> Object:
    ports = [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}]
    return _object("v1", "Service", name, labels, namespace, {"selector": pod_selector(release), "ports": ports})


def _disruption_budget(name: str, labels: dict[str, str], namespace: str) -> Object:
    # Not minAvailable: with one replica that would block every drain of its node.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": pod_selector(name)}}
    return _object("policy/v1", "PodDisruptionBudget", name, labels, namespace, spec)


def _metadata_labels(service: str) -> dict[str, str]:
    # KServe copies them to pods: nothing that changes from run to run may stand here.
    return {
        "app.kubernetes.io/name": "nemotron-embed",
        "app.kubernetes.io/instance": service,
        "app.kubernetes.io/managed-by": MANAGED_BY,
    }


def _object(version: str, kind: str, name: str, labels: dict[str, str], namespace: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
