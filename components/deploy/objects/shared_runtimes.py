"""ServingRuntimes for the InferenceServices of others; each release of deploy has one of its own.

``python -m components.deploy.objects.shared_runtimes`` writes them where the chart and the manifests take them from.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from components.core.kubernetes.pod_security import SECCOMP_PROFILE
from components.core.kubernetes.resource_kinds import Object
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.objects.kserve_objects import runtime

_REPOSITORY = Path(__file__).resolve().parents[3]
FILE = _REPOSITORY / "manifests" / "components" / "serving-runtimes" / "serving-runtimes.yaml"
_VALUES = _REPOSITORY / "charts" / "nemotron-embed" / "values.yaml"
# KServe fills in the name of the InferenceService.
_SERVICE = "{{.Name}}"
_HEAD = "# Written by python -m components.deploy.objects.shared_runtimes\n"


def shared_runtimes(server_image: str) -> list[Object]:
    """Return one ServingRuntime for each backend, without namespace; ``server_image`` is the image ``server``.

    Their pods keep to the restricted standard whatever the InferenceService says, and the name that clients give is
    that of the InferenceService. No release of deploy can have such a name: all of them end in a digest.
    """
    configs = (
        DeployConfig(backend="onnx", serving_image=server_image, image_pull_secret_name=""),
        DeployConfig(backend="nim"),
        DeployConfig(backend="vllm", image_pull_secret_name=""),
    )
    return [_render_shared(config) for config in configs]


def _render_shared(config: DeployConfig) -> Object:
    contract = select_contract(config)
    # Past the validation of settings, which refuse what KServe would fill in.
    config = config.model_copy(update={"served_model_name": _SERVICE})
    labels = {"app.kubernetes.io/name": "nemotron-embed"}
    shared = runtime(f"nemotron-embed-{config.backend}", config, None, contract, labels, "")
    del shared["metadata"]["namespace"]
    (container,) = shared["spec"]["containers"]
    container["securityContext"] |= {"runAsUser": contract.user, "seccompProfile": SECCOMP_PROFILE}
    return shared


def as_text() -> str:
    """Return the file, with the server image that the chart names."""
    image = yaml.safe_load(_VALUES.read_text(encoding="utf-8"))["images"]["server"]
    return _HEAD + yaml.safe_dump_all(shared_runtimes(image), sort_keys=False, width=120)


if __name__ == "__main__":
    FILE.write_text(as_text(), encoding="utf-8")
