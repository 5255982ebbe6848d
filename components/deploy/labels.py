"""Names, labels and annotations by which deploy finds its objects again."""

from __future__ import annotations

from components.core.kubernetes.resource_kinds import Object

GROUP = "nemotron-embed.kubeflow.org"
MODEL_DIGEST = f"{GROUP}/model-digest"
CHECKPOINT_DIGEST = f"{GROUP}/checkpoint-digest"
RELEASE = f"{GROUP}/release"
PREVIOUS = f"{GROUP}/previous"
MANAGED_BY = "nemotron-embed-deploy"


def service_url(name: str, namespace: str, domain: str) -> str:
    """Return the address of a Service inside the cluster."""
    return f"http://{name}.{namespace}.svc.{domain}"


def direct_name(release: str) -> str:
    """Return the name of the Service of one release.

    It is not the release's own name: KServe makes Services of that name in some modes.
    """
    return f"{release}-direct"


def live_name(service: str) -> str:
    """Return the name of the Service that clients use; its selector says which release is live."""
    return f"{service}-live"


def pod_selector(release: str) -> dict[str, str]:
    """Return the label that KServe gives the pods of an InferenceService in Standard mode."""
    return {"app": f"isvc.{release}-predictor"}


def metadata_labels(service: str) -> dict[str, str]:
    """Return the labels of every object.

    KServe copies them to pods, so nothing that changes from run to run may be among them.
    """
    return {
        "app.kubernetes.io/name": "nemotron-embed",
        "app.kubernetes.io/instance": service,
        "app.kubernetes.io/managed-by": MANAGED_BY,
    }


def as_object(version: str, kind: str, name: str, labels: dict[str, str], namespace: str, spec: Object) -> Object:
    """Return an object with a spec."""
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
