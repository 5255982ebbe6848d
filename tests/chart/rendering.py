"""The chart as Helm's own SDK renders it, and rules that hold for any Kubernetes object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

CHART = Path(__file__).parents[2] / "charts" / "nemotron-embed"
NAMESPACE = "team-a"
Object = dict[str, Any]
# Kinds of operators: tests/deploy/schemas.py and tests/manifests/test_operators.py hold them against theirs.
CUSTOM = {"PodMonitor", "PrometheusRule", "ExternalSecret", "LocalQueue", "ServingRuntime"}
# The oldest Kubernetes that the chart takes, and a recent one.
VERSIONS = ("1.29", "1.35")


def rendered(values: dict[str, Any] | None = None, chart: Path = CHART) -> dict[str, str]:
    """What each template gives, by the template's path without the chart's name."""
    with helm_python.Chart.load(str(chart)) as loaded:
        files = loaded.render(values or {}, name="demo", namespace=NAMESPACE)
    return {name.partition("/")[2]: text for name, text in sorted(files.items())}


def objects(values: dict[str, Any] | None = None) -> list[Object]:
    """Every object that ``values`` make."""
    texts = [text for name, text in rendered(values).items() if not name.endswith("NOTES.txt")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def one(found: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of ``kind``, and of ``name`` where it is given."""
    (match,) = [item for item in found if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return match


def problems(item: Object) -> Iterator[str]:
    """What Kubernetes' own schemas refuse of ``item``, unknown fields as well."""
    if item["kind"] in CUSTOM:
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {error.message}"


def insecure(item: Object) -> Iterator[str]:
    """Where a Pod or Job falls short of the restricted pod standard, of a read-only root, or of limits.

    https://kubernetes.io/docs/concepts/security/pod-security-standards
    """
    if item["kind"] not in ("Pod", "Job"):
        return
    pod = item["spec"] if item["kind"] == "Pod" else item["spec"]["template"]["spec"]
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    allowed = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod["volumes"]:
        yield from (f"volume {kind}" for kind in set(volume) - {"name"} - allowed)
    security = pod["securityContext"]
    # Without an id the namespace gives one (OpenShift), or Kubernetes refuses an image that runs as root.
    if not (security["runAsNonRoot"] is True and security.get("runAsUser", 1) > 0):
        yield "may run as root"
    if security["seccompProfile"] != {"type": "RuntimeDefault"}:
        yield "seccomp profile"
    if pod["automountServiceAccountToken"]:
        yield "token of the API server"
    for container in pod["containers"] + pod.get("initContainers", []):
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
                  "capabilities": {"drop": ["ALL"]}}  # fmt: skip
        if container["securityContext"] != wanted:
            yield f"{container['name']}: security context"
        if set(container["resources"]["limits"]) != {"cpu", "memory"}:
            yield f"{container['name']}: limits"
        yield from (f"{container['name']}: hostPort" for port in container.get("ports", []) if "hostPort" in port)


def without_labels(item: Object) -> Object:
    """``item`` less what only names its installer."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "labels"}
    data = item.get("data", {})
    if "providers" in data:
        data = data | {"providers": yaml.safe_load(data["providers"])}
    return item | {"metadata": metadata} | ({"data": data} if data else {})
