"""The model to train: where its weights lie, and how its gradient is computed."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import init_device_mesh

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.checkpoint import default_device, load_base
from components.core.encoder.model import Encoder
from components.core.encoder.packed.encoder import supports
from components.core.errors import InputError
from components.finetune.component import FinetuneConfig
from components.finetune.gradients.gradient import Gradient
from components.finetune.gradients.packed_gradient import PackedGradient
from components.finetune.gradients.padded_gradient import PaddedGradient
from components.finetune.gradients.sharding import ShardedGradient, shard_model
from components.finetune.lora import add_lora
from components.finetune.observe.memory import Estimate, estimate

_log = logging.getLogger(__name__)
# Of a GPU's memory: the rest is for the context, the libraries and what the allocator cannot use.
_USABLE = 0.9


@dataclass(frozen=True)
class Trainable:
    """An encoder in training, what computes its gradient, and the sha256 (hex) of the base model's weights."""

    encoder: Encoder
    gradient: Gradient
    base_weights: str


def load_trainable(config: FinetuneConfig, process_group: ProcessGroup, dtype: torch.dtype) -> Trainable:
    """The base model, float32, whole on every rank or spread over all of them, with LoRA where that is asked for.

    Raises InputError when it fits neither way.
    """
    device = default_device()
    if spreads(config, process_group, device, dtype):
        return _spread(config, process_group, dtype, device)
    encoder = _load(config, device)
    digest = weights_digest(encoder) if config.checkpoint_uri and process_group.is_main else ""
    _add_lora(encoder, config)
    for weights in encoder.parameters():
        if weights.requires_grad:
            process_group.broadcast_tensor(weights.data)
    return Trainable(encoder, select_gradient(encoder, config, dtype, process_group), digest)


def weights_digest(encoder: Encoder) -> str:
    """sha256 (hex) of all weights and their names. Reads all of them: seconds for 5 GB."""
    sha256 = hashlib.sha256()
    for name, weights in encoder.backbone.named_parameters():
        sha256.update(json.dumps([name, list(weights.shape)]).encode())
        sha256.update(weights.detach().float().cpu().contiguous().numpy().data)
    return sha256.hexdigest()


def select_gradient(
    encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype, process_group: ProcessGroup
) -> Gradient:
    """The fastest way that ``encoder``, its device and ``dtype`` allow. Raises InputError where fp8 cannot be had."""
    packed = encoder.device.type == "cuda" and dtype == torch.bfloat16 and supports(encoder.backbone)
    if config.precision == "fp8":
        able = encoder.device.type == "cuda" and torch.cuda.get_device_capability(encoder.device) >= (8, 9)
        if not able or not packed:
            raise InputError(
                "precision = fp8 needs a GPU with 8-bit products (H100 and later), a model that runs over packed texts "
                "and no LoRA: set precision to auto"
            )
    if packed:
        return PackedGradient(encoder, config, dtype, process_group, compiled=True, fp8=config.precision == "fp8")
    return PaddedGradient(encoder, config, dtype, process_group)


def spreads(config: FinetuneConfig, process_group: ProcessGroup, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the weights are spread over the ranks. Raises InputError when the model fits neither way."""
    if config.parallelism == "fsdp" and config.precision == "fp8":
        raise InputError("precision = fp8 needs whole weights on every GPU: set parallelism=ddp, or precision=bf16")
    if config.parallelism == "fsdp":
        return process_group.is_distributed
    if device.type != "cuda":
        return False
    needed = estimate(config, dtype)
    available = _USABLE * torch.cuda.get_device_properties(device).total_memory
    if needed.total <= available:
        return False
    if (
        config.parallelism == "auto"
        and process_group.is_distributed
        and needed.spread_over(process_group.size) <= available
    ):
        _log.info("%s: the weights are spread over %d GPUs (fsdp)", _needs(needed, available), process_group.size)
        return True
    if needed.least > available:
        raise InputError(
            f"{config.base_model}: {_needs(needed, available)}: train with lora_rank, on more GPUs (num_processes) or "
            f"on larger ones"
        )
    return False


def _needs(needed: Estimate, available: float) -> str:
    return f"training needs about {needed.total / 1e9:.0f} GB on a GPU, {available / 1e9:.0f} GB can be used"


def _spread(config: FinetuneConfig, process_group: ProcessGroup, dtype: torch.dtype, device: torch.device) -> Trainable:
    """One rank after the other: together, their copies in main memory would be as many models."""
    mesh = init_device_mesh(device.type, (process_group.size,))
    encoder: Encoder | None = None
    digest = ""
    for turn in range(process_group.size):
        if turn == process_group.rank:
            encoder = _load(config, torch.device("cpu"))
            digest = weights_digest(encoder) if config.checkpoint_uri and process_group.is_main else ""
            _add_lora(encoder, config)
            shard_model(encoder, dtype, mesh)
        process_group.barrier()
    if encoder is None:
        raise RuntimeError(f"rank {process_group.rank} is none of {process_group.size}")
    return Trainable(encoder, ShardedGradient(encoder, config, process_group), digest)


def _load(config: FinetuneConfig, device: torch.device) -> Encoder:
    encoder = load_base(config.encoder(), device=device, dtype=torch.float32)
    if config.attn_implementation:
        try:
            encoder.backbone.set_attn_implementation(config.attn_implementation)
        except (ImportError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise InputError(f"attn_implementation = {config.attn_implementation} cannot be used: {why}") from None
    return encoder


def _add_lora(encoder: Encoder, config: FinetuneConfig) -> None:
    if config.lora_rank:
        add_lora(encoder, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
