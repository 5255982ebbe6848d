"""Whether an image, on the nodes that are asked for, serves the model as it was trained."""

from __future__ import annotations

import logging

from components.core.errors import InputError
from components.core.serving.bundle import Bundle
from components.core.serving.model_manifest import TENSORRT_FOLDER, TensorRTPlanInfo
from components.deploy.backends.contracts import Contract, longest
from components.deploy.backends.gpus import Capability, compute_capability, other_model
from components.deploy.component import DeployConfig

_AMPERE = (8, 0)
_log = logging.getLogger(__name__)


def require_servable(config: DeployConfig, bundle: Bundle, contract: Contract) -> None:
    """Raise InputError for a model that the image cannot serve, or would serve otherwise than it was trained."""
    _require_form(bundle, contract)
    _require_texts(bundle, contract)
    if contract.model_folder == TENSORRT_FOLDER:
        plan = _plan(bundle)
        _require_profile(plan, bundle)
        _require_gpus(plan, config.serving_node_selector)


def _require_form(bundle: Bundle, contract: Contract) -> None:
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


def _require_texts(bundle: Bundle, contract: Contract) -> None:
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


def _plan(bundle: Bundle) -> TensorRTPlanInfo:
    if bundle.manifest.plan is None:
        raise InputError("deploy_bundle does not say what its TensorRT plan runs on: export again")
    return bundle.manifest.plan


def _require_profile(plan: TensorRTPlanInfo, bundle: Bundle) -> None:
    if plan.length[2] < longest(bundle):
        raise InputError(
            f"the TensorRT plan takes texts of {plan.length[2]} tokens, the model was trained with {longest(bundle)}: "
            f"export again without trt_max_seq_len, or set model_format=onnx"
        )
    if plan.batch[0] > 1:
        raise InputError(
            f"the TensorRT plan takes no fewer than {plan.batch[0]} texts at once, and a query comes alone: export "
            f"again with trt_min_batch=1, or set model_format=onnx"
        )


def _require_gpus(plan: TensorRTPlanInfo, labels: dict[str, str]) -> None:
    """What a plan runs on: TensorRT's documentation of hardware compatibility, which is an export setting."""
    built = f"the TensorRT plan was built on {plan.gpu} (compute capability {plan.compute_capability})"
    found = compute_capability(labels)
    if found is None:
        _log.warning("%s; serving_node_selector does not tell whether nodes have such GPUs", built)
    elif not _runs_on(found, plan):
        raise InputError(
            f"{built}, serving_node_selector asks for {labels} ({found[0]}.{found[1]}), where it does not load: serve "
            f"on such nodes, export there, or set export.trt_hardware_compatibility=ampere_plus"
        )
    elif plan.hardware_compatibility == "none" and (product := other_model(labels, plan.gpu)):
        _log.warning("%s and is to serve on %s: TensorRT vouches for neither its speed nor its results", built, product)


def _runs_on(nodes: Capability, plan: TensorRTPlanInfo) -> bool:
    if plan.hardware_compatibility == "ampere_plus":
        return nodes >= _AMPERE
    major, minor = plan.compute_capability.split(".")
    return nodes == (int(major), int(minor))
