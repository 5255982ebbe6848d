"""A release as KServe's objects: a ServingRuntime that knows the image, an InferenceService that knows the model."""

from __future__ import annotations

from typing import Any

from components.core.kubernetes.pod_security import restricted_container_security, restricted_pod_security
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.bundle import Bundle
from components.deploy.backends.contracts import PORT, Contract
from components.deploy.backends.images import select_image
from components.deploy.component import DeployConfig
from components.deploy.labels import MODEL_DIGEST, as_object
from components.deploy.settings.serving_settings import ServingPods

SERVING = "serving.kserve.io"


def runtime(
    name: str, config: DeployConfig, bundle: Bundle | None, contract: Contract, labels: dict[str, str], namespace: str
) -> Object:
    """Return the ServingRuntime: image, environment, probes, volumes; without ``bundle`` for any model."""
    spec: Object = {
        # autoSelect off: never taken for other InferenceServices.
        "supportedModelFormats": [{"name": contract.name, "version": "1", "autoSelect": False}],
        "protocolVersions": ["v2"],
        "multiModel": False,
        "annotations": {"prometheus.kserve.io/port": str(PORT), "prometheus.kserve.io/path": contract.metrics},
        "containers": [_container(config, bundle, contract)],
        "volumes": _volumes(config, contract),
    }
    if config.image_pull_secret_name:
        spec["imagePullSecrets"] = [{"name": config.image_pull_secret_name}]
    return as_object(f"{SERVING}/v1alpha1", "ServingRuntime", name, labels, namespace, spec)


def inference_service(
    name: str,
    config: DeployConfig,
    bundle: Bundle,
    contract: Contract,
    labels: dict[str, str],
    namespace: str,
    model_uri: str,
    account: str,
) -> Object:
    """Return the InferenceService: model, nodes, identity, number of pods."""
    user = config.serving_run_as_user or contract.user
    predictor: Object = {
        "annotations": {MODEL_DIGEST: bundle.manifest.digest},
        **_scale(config),
        "terminationGracePeriodSeconds": 60,
        "automountServiceAccountToken": False,
        "securityContext": restricted_pod_security(runAsUser=user, runAsGroup=user, fsGroup=user),
        "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "model": {
            "modelFormat": {"name": contract.name, "version": "1"},
            "runtime": name,
            "storageUri": model_uri,
            "resources": resources(config, contract),
        },
    }
    if account:
        predictor["serviceAccountName"] = account
    if config.serving_priority_class:
        predictor["priorityClassName"] = config.serving_priority_class
    if gpu_count(config, contract):
        predictor |= {"nodeSelector": config.serving_node_selector, "tolerations": config.serving_tolerations}
    labels = labels | {"networking.kserve.io/visibility": "cluster-local"}
    service = as_object(f"{SERVING}/v1beta1", "InferenceService", name, labels, namespace, {"predictor": predictor})
    service["metadata"]["annotations"] = {
        # KServe's default mode differs from cluster to cluster.
        f"{SERVING}/deploymentMode": config.kserve_mode,
        f"{SERVING}/autoscalerClass": config.autoscaler,
        f"{SERVING}/enable-prometheus-scraping": "true",
        # The step that verifies has no identity in a mesh.
        "sidecar.istio.io/inject": "false",
    }
    return service


def gpu_count(config: ServingPods, contract: Contract) -> int:
    """Return the number of GPUs of each pod."""
    return contract.gpus if config.serving_gpu_count is None else config.serving_gpu_count


def resources(config: ServingPods, contract: Contract) -> Object:
    """Return the requests and limits of each pod, which are the same."""
    amounts = {"cpu": config.serving_cpu, "memory": config.serving_memory}
    if gpus := gpu_count(config, contract):
        amounts[config.serving_gpu_resource] = str(gpus)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def probe(path: str, *, period: int, failures: int, port: int | str = PORT) -> Object:
    """Return an HTTP probe.

    KServe's own would be of TCP, which answers before the model is loaded.
    """
    get = {"path": path, "port": port}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _scale(config: ServingPods) -> Object:
    scale: Object = {
        "minReplicas": config.serving_replicas,
        "maxReplicas": config.serving_max_replicas or config.serving_replicas,
    }
    if config.autoscaler == "hpa":
        scale |= {"scaleMetric": "cpu", "scaleTarget": round(config.autoscaler_target)}
    if config.autoscaler == "keda":
        trigger: dict[str, Any] = {
            "metric": {
                "backend": "prometheus",
                "serverAddress": config.keda_prometheus_url,
                "query": config.keda_query,
            },
            "target": {"type": "AverageValue", "averageValue": f"{config.autoscaler_target:g}"},
        }
        scale["autoScaling"] = {"metrics": [{"type": "External", "external": trigger}]}
    return scale


def _container(config: DeployConfig, bundle: Bundle | None, contract: Contract) -> Object:
    served_name, gpus = config.served_model_name, gpu_count(config, contract)
    container: Object = {
        "name": "kserve-container",
        "image": select_image(config),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": _environment(config, bundle, contract),
        # Half an hour: the image starts, downloads what it needs and builds its sessions.
        "startupProbe": probe(contract.ready, period=10, failures=180),
        "readinessProbe": probe(contract.ready, period=10, failures=3),
        "livenessProbe": probe(contract.live, period=20, failures=6),
        "resources": resources(config, contract),
        "securityContext": restricted_container_security(
            privileged=False, readOnlyRootFilesystem=not contract.needs_writable_root, runAsNonRoot=True
        ),
        "volumeMounts": [{"name": "cache", "mountPath": contract.cache}],
    }
    if contract.needs_shared_memory:
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    if command := contract.fill_arguments(contract.command, bundle, served_name=served_name, gpus=gpus):
        container["command"] = command
    arguments = contract.fill_arguments(contract.arguments, bundle, served_name=served_name, gpus=gpus)
    if arguments := arguments + (config.vllm_arguments if config.backend == "vllm" else []):
        container["args"] = arguments
    return container


def _environment(config: DeployConfig, bundle: Bundle | None, contract: Contract) -> list[Object]:
    values = contract.build_environment(bundle, served_name=config.served_model_name)
    environment: list[Object] = [{"name": key, "value": value} for key, value in values.items()]
    if contract.reads_ngc_key and config.ngc_secret_name:
        reference = {"name": config.ngc_secret_name, "key": "NGC_API_KEY", "optional": True}
        environment.append({"name": "NGC_API_KEY", "valueFrom": {"secretKeyRef": reference}})
    return environment


def _volumes(config: ServingPods, contract: Contract) -> list[Object]:
    volumes: list[Object] = [{"name": "cache", "emptyDir": {"sizeLimit": contract.cache_size}}]
    if contract.needs_shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": config.shm_size}})
    return volumes
