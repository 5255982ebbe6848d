"""A release as a NIMService of NVIDIA's NIM operator (3.1.2 or later), which makes an InferenceService of it.

It is written, never applied or watched: the operator stops the old pod before the new one when there is one replica.
It knows no object storage: the model lies on a claim that the pods can read. Source: k8s-nim-operator,
``api/apps/v1alpha1/nimservice_types.go`` and its samples for KServe.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.core.serving.bundle import Bundle
from components.deploy.backends.contracts import PORT, Contract
from components.deploy.backends.images import select_image
from components.deploy.component import DeployConfig
from components.deploy.labels import MODEL_DIGEST, as_object
from components.deploy.objects.kserve_objects import gpu_count, probe, resources

_MODEL_STORE = "/model-store"  # Where the operator mounts the claim of a NIM 1.x.


def nim_service(
    name: str,
    config: DeployConfig,
    bundle: Bundle,
    contract: Contract,
    labels: dict[str, str],
    namespace: str,
    model_uri: str,
) -> Object:
    """Return the NIMService. Raises InputError for a model that does not lie on a claim, and for a digest as image."""
    claim = urlsplit(model_uri)
    if claim.scheme != "pvc":
        raise InputError(f"the NIM operator serves from a claim, not {model_uri}: set model_uri to pvc://CLAIM/PATH")
    repository, _, tag = select_image(config).rpartition(":")
    if "@" in select_image(config):
        raise InputError(
            f"serving_image {select_image(config)}: a NIMService names its image by tag: leave the digest out"
        )
    path = claim.path.strip("/")
    user = config.serving_run_as_user or contract.user
    spec: Object = {
        "inferencePlatform": "kserve",
        "annotations": {"serving.kserve.io/deploymentMode": config.kserve_mode, MODEL_DIGEST: bundle.manifest.digest},
        "labels": {"networking.kserve.io/visibility": "cluster-local"},
        "image": _image(config, repository, tag),
        "env": _environment(config, bundle, contract, path),
        "storage": {
            "pvc": {"name": claim.netloc, "volumeAccessMode": "ReadWriteMany"},
            "sharedMemorySizeLimit": config.shm_size,
        },
        "replicas": config.serving_replicas,
        "userID": user,
        "groupID": user,
        "resources": resources(config, contract),
        "startupProbe": {
            "enabled": True,
            "probe": probe(contract.ready, period=10, failures=180, port="api"),
        },
        "expose": {"service": {"type": "ClusterIP", "port": PORT}},
    }
    if contract.serves == "checkpoint":
        # The operator mounts it where its own variable, NIM_ENGINE_MODEL_PATH, says.
        spec["storage"]["pvc"]["subPath"] = path
    if gpu_count(config, contract):
        spec |= {"nodeSelector": config.serving_node_selector, "tolerations": config.serving_tolerations}
    if config.ngc_secret_name:
        spec["authSecret"] = config.ngc_secret_name
    if config.serving_priority_class:
        spec["priorityClassName"] = config.serving_priority_class
    return as_object("apps.nvidia.com/v1alpha1", "NIMService", name, labels, namespace, spec)


def _image(config: DeployConfig, repository: str, tag: str) -> Object:
    secrets = [config.image_pull_secret_name] if config.image_pull_secret_name else []
    return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent", "pullSecrets": secrets}


def _environment(config: DeployConfig, bundle: Bundle, contract: Contract, path: str) -> list[Object]:
    values = contract.build_environment(
        bundle, served_name=config.served_model_name, model_path=f"{_MODEL_STORE}/{path}".rstrip("/")
    )
    set_by_operator = contract.model_env if contract.serves == "checkpoint" else ()
    return [{"name": key, "value": value} for key, value in values.items() if key not in set_by_operator]
