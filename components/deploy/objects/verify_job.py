"""A Job that verifies the live service: Argo CD runs it after each sync, and a sync whose Job fails has failed."""

from __future__ import annotations

from components.core.kubernetes.pod_security import restricted_container_security, restricted_pod_security
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.api import ApiName
from components.core.serving.model_manifest import CHECKPOINT_FOLDER
from components.core.stage import S3_VARIABLES
from components.deploy.component import DeployConfig
from components.deploy.labels import as_object, metadata_labels
from components.deploy.objects.render import Release


def verify_job(config: DeployConfig, release: Release, model_uri: str, api: ApiName) -> Object:
    """Return the Job that verifies ``release``. The probes lie beside the model, where ``publish`` put them."""
    container: Object = {
        "name": "verify",
        "image": config.gitops_verify_image,
        "command": ["python", "-m", "components.deploy.verify"],
        "args": _arguments(config, release, model_uri, api),
        "env": [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "models-s3", "key": name, "optional": True}}}
            for name in S3_VARIABLES
        ],
        "securityContext": restricted_container_security(readOnlyRootFilesystem=True, runAsNonRoot=True),
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": restricted_pod_security(runAsUser=10001),
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
    }
    if config.serving_service_account:
        pod["serviceAccountName"] = config.serving_service_account
    labels = metadata_labels(config.service_name)
    metadata = {"labels": labels, "annotations": {"sidecar.istio.io/inject": "false"}}
    spec: Object = {"backoffLimit": 0, "template": {"metadata": metadata, "spec": pod}}
    job = as_object("batch/v1", "Job", f"{release.name}-verify", labels, release.namespace, spec)
    job["metadata"]["annotations"] = {
        "argocd.argoproj.io/hook": "PostSync",
        "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
    }
    return job


def _arguments(config: DeployConfig, release: Release, model_uri: str, api: ApiName) -> list[str]:
    options = {
        "--url": release.live_url(config.cluster_domain),
        "--model": config.served_model_name,
        "--bundle": model_uri.removesuffix(f"/{CHECKPOINT_FOLDER}"),
        "--api": api,
        "--wait-seconds": f"{config.rollout_timeout:g}",
    }
    if config.latency_budget_ms:
        options["--latency-budget-ms"] = f"{config.latency_budget_ms:g}"
    return [part for pair in options.items() for part in pair]
