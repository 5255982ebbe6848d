"""Which GPUs the nodes with given labels have.

Compute capabilities: https://developer.nvidia.com/cuda-gpus. Labels: NVIDIA's GPU feature discovery, GKE, Karpenter.
"""

from __future__ import annotations

import re

Capability = tuple[int, int]
_PRODUCT = "nvidia.com/gpu.product"
_MODEL_LABELS = (_PRODUCT, "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name")
_MAJOR, _MINOR = "nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"
_CAPABILITIES: dict[Capability, tuple[str, ...]] = {
    (7, 0): ("v100",),
    (7, 5): ("t4",),
    (8, 0): ("a100", "a30"),
    (8, 6): ("a10", "a10g", "a40"),
    (8, 9): ("l4", "l40", "l40s"),
    (9, 0): ("h100", "h200", "gh200"),
    (10, 0): ("b200", "gb200"),
}


def compute_capability(labels: dict[str, str]) -> Capability | None:
    """Major and minor number that GPUs of nodes with ``labels`` have; None when no label tells."""
    major, minor = labels.get(_MAJOR, ""), labels.get(_MINOR, "")
    if major.isdigit() and minor.isdigit():
        return int(major), int(minor)
    words = {word for label in _MODEL_LABELS for word in re.split(r"[^a-z0-9]+", labels.get(label, "").lower())}
    return next((capability for capability, models in _CAPABILITIES.items() if words & set(models)), None)


def other_model(labels: dict[str, str], gpu: str) -> str | None:
    """The product that ``labels`` ask for, when it is not the one that CUDA calls ``gpu``."""
    # The label is CUDA's name with hyphens; nodes that share or split their GPUs add to it.
    product = labels.get(_PRODUCT, "")
    return product if product and not product.startswith(gpu.replace(" ", "-")) else None
