"""What becomes of a release for causes that lie in its own objects or in the namespace, as in a real cluster.

Codes, reasons and words are the kubelet's, the scheduler's and the admission plugins' of Kubernetes.
"""

from __future__ import annotations

from tests.deploy.cluster.kserve import NEVER, Fate, crashed, unschedulable, waiting
from tests.deploy.cluster.store import Object, Store

GPUS, CPUS = 8, 64
_STORED = "s3://models/"
_EMPTY = "empty"
_UNITS = {"Mi": 2**20, "Gi": 2**30}


def consequence(store: Store, service: Object, stored: set[str]) -> Fate | None:
    """The fate of ``service``; None when nothing is wrong with it. ``stored`` are the models that the storage has."""
    predictor = service["spec"]["predictor"]
    runtime = store.objects["servingruntimes", predictor["model"]["runtime"]]
    (container,) = runtime["spec"]["containers"]
    limits = container["resources"]["limits"]
    if refusal := _refused(store, predictor, _bytes(limits["memory"])):
        message = f'pods "x-{{age}}" is forbidden: {refusal}'
        condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
        return Fate(NEVER, conditions=[condition])
    for resource, most in (("nvidia.com/gpu", GPUS), ("cpu", CPUS)):
        if int(limits.get(resource, 0)) > most:
            return Fate(NEVER, pod=unschedulable(f"0/5 nodes are available: 5 Insufficient {resource}."))
    image = container["image"]
    if image != image.lower():
        return Fate(NEVER, pod=waiting("InvalidImageName", f"couldn't parse image name {image!r}"))
    if image.split("/")[0].endswith(".invalid"):
        return Fate(NEVER, pod=waiting("ImagePullBackOff", f'Back-off pulling image "{image}"'))
    model = predictor["model"]["storageUri"].removeprefix(_STORED)
    if model == _EMPTY:
        return Fate(NEVER, pod=crashed(2, 3), log="error: /mnt/models has no model-manifest.json")
    if model not in stored:
        return Fate(NEVER, pod=crashed(1, 2, init=True), log=f"RuntimeError: Failed to fetch model. {model}")
    if _bytes(limits["memory"]) < 64 * 2**20:
        return Fate(NEVER, pod=crashed(137, 1, "OOMKilled"))
    return None


def _refused(store: Store, predictor: Object, memory: int) -> str:
    account = predictor.get("serviceAccountName", "")
    if account and ("serviceaccounts", account) not in store.objects:
        return f'error looking up service account {store.namespace}/{account}: serviceaccount "{account}" not found'
    if name := predictor.get("priorityClassName"):
        return f"no PriorityClass with name {name} was found"
    for (plural, name), item in store.objects.items():
        if plural == "resourcequotas":
            return (
                f"exceeded quota: {name}, requested: pods=1, used: pods=1, limited: pods={item['spec']['hard']['pods']}"
            )
        if plural == "limitranges":
            (rule,) = item["spec"]["limits"]
            if memory > _bytes(most := rule["max"]["memory"]):
                return f"maximum memory usage per {rule['type']} is {most}, but limit is {memory}"
    return ""


def _bytes(quantity: str) -> int:
    return int(float(quantity[:-2]) * _UNITS[quantity[-2:]])
