"""Whether an image, on the nodes that are asked for, serves the model as it was trained.

Compute capabilities: https://developer.nvidia.com/cuda-gpus. Labels: NVIDIA's GPU feature discovery, GKE, Karpenter.
"""

from __future__ import annotations

import logging
import re

from components.core.errors import InputError
from components.core.serving.bundle import Bundle
from components.core.serving.model_manifest import TENSORRT_FOLDER, TensorRTPlanInfo
from components.deploy.backends.contracts import Contract, get_max_length
from components.deploy.component import DeployConfig

Capability = tuple[int, int]
_AMPERE = (8, 0)
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
_log = logging.getLogger(__name__)


def check_compatibility(config: DeployConfig, bundle: Bundle, contract: Contract) -> None:
    """Check that the image can serve the model, and serves it as it was trained.

    Raises InputError for a model of the wrong format, for prefixes or lengths that the image would change, and for a
    TensorRT plan that does not take the model's texts or does not load on the chosen nodes.
    """
    _check_format(bundle, contract)
    _check_prefixes_and_lengths(bundle, contract)
    if contract.model_folder == TENSORRT_FOLDER:
        plan = _get_plan(bundle)
        _check_profile(plan, bundle)
        _check_gpus(plan, config.serving_node_selector)


def get_compute_capability(labels: dict[str, str]) -> Capability | None:
    """Return the compute capability (major, minor) of the GPUs of nodes with ``labels``; None when no label tells."""
    major, minor = labels.get(_MAJOR, ""), labels.get(_MINOR, "")
    if major.isdigit() and minor.isdigit():
        return int(major), int(minor)
    words = {word for label in _MODEL_LABELS for word in re.split(r"[^a-z0-9]+", labels.get(label, "").lower())}
    return next((capability for capability, models in _CAPABILITIES.items() if words & set(models)), None)


def _check_format(bundle: Bundle, contract: Contract) -> None:
    if contract.serves == "checkpoint":
        return
    if bundle.manifest.model_format == "checkpoint":
        raise InputError(
            f"{contract.title} serves an exported model, and export wrote none: set export.enabled=true, or give a "
            f"serving_image that takes a checkpoint (NIM 2.x, vLLM)"
        )
    if not any(name.startswith(contract.export_folder) for name in bundle.manifest.files):
        raise InputError(
            f"deploy_bundle knows no file below {contract.export_folder}: export that form of the model, or change "
            f"model_format"
        )


def _check_prefixes_and_lengths(bundle: Bundle, contract: Contract) -> None:
    encoder = bundle.encoder
    if contract.prefixes and contract.prefixes != (encoder.query_prefix, encoder.passage_prefix):
        raise InputError(
            f"{contract.title} puts {contract.prefixes} before queries and passages, the model was trained with "
            f"{(encoder.query_prefix, encoder.passage_prefix)}: use backend=onnx, or train with the NIM's prefixes"
        )
    if contract.one_length and encoder.query_max_length != encoder.passage_max_length:
        raise InputError(
            f"{contract.title} cuts all texts at one length, the model was trained with queries of "
            f"{encoder.query_max_length} and passages of {encoder.passage_max_length} tokens: use backend=onnx, "
            f"or train with equal lengths"
        )


def _get_plan(bundle: Bundle) -> TensorRTPlanInfo:
    if bundle.manifest.plan is None:
        raise InputError("deploy_bundle does not say what its TensorRT plan runs on: export again")
    return bundle.manifest.plan


def _check_profile(plan: TensorRTPlanInfo, bundle: Bundle) -> None:
    max_length = get_max_length(bundle)
    if plan.length[2] < max_length:
        raise InputError(
            f"the TensorRT plan takes texts of {plan.length[2]} tokens, the model was trained with {max_length}: "
            f"export again without trt_max_seq_len, or set model_format=onnx"
        )
    if plan.batch[0] > 1:
        raise InputError(
            f"the TensorRT plan takes no fewer than {plan.batch[0]} texts at once, and a query comes alone: export "
            f"again with trt_min_batch=1, or set model_format=onnx"
        )


def _check_gpus(plan: TensorRTPlanInfo, labels: dict[str, str]) -> None:
    """Check the rules of TensorRT's documentation on hardware compatibility, which is a setting of export."""
    built = f"the TensorRT plan was built on {plan.gpu} (compute capability {plan.compute_capability})"
    capability = get_compute_capability(labels)
    if capability is None:
        _log.warning("%s; serving_node_selector does not tell whether nodes have such GPUs", built)
    elif not _runs_on(capability, plan):
        raise InputError(
            f"{built}, serving_node_selector asks for {labels} ({capability[0]}.{capability[1]}), where it does not "
            f"load: serve on such nodes, export there, or set export.trt_hardware_compatibility=ampere_plus"
        )
    elif plan.hardware_compatibility == "none" and (product := _get_other_product(labels, plan.gpu)):
        _log.warning("%s and is to serve on %s: TensorRT vouches for neither its speed nor its results", built, product)


def _runs_on(capability: Capability, plan: TensorRTPlanInfo) -> bool:
    if plan.hardware_compatibility == "ampere_plus":
        return capability >= _AMPERE
    major, minor = plan.compute_capability.split(".")
    return capability == (int(major), int(minor))


def _get_other_product(labels: dict[str, str], gpu: str) -> str | None:
    """Return the product that ``labels`` ask for when it is not the one that CUDA calls ``gpu``."""
    # The label is CUDA's name with hyphens; nodes that share or split their GPUs add to it.
    product = labels.get(_PRODUCT, "")
    return product if product and not product.startswith(gpu.replace(" ", "-")) else None
