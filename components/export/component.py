"""export: the checkpoint as ONNX, proven equal to it, with the probes that prove it again when served."""

from __future__ import annotations

from typing import Literal

from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage


class ExportConfig(Settings):
    """Settings of export. Names and defaults are the recipe's where it has them."""

    enabled: bool = setting(
        True,
        "false writes no ONNX: exported_model holds the checkpoint itself, for servers that take one (NIM 2.x, vLLM)",
    )
    opset: int = setting(20, "ONNX operator set", ge=18)
    export_dtype: Literal["fp32", "fp16"] = setting("fp32", "Precision of the exported weights")
    num_probes: int = setting(64, "Texts whose reference vectors travel with the model", ge=8)
    encode_batch_tokens: int = setting(16384, "Tokens encoded at once, padding included", gt=0)
    seed: int = setting(42, "Seed of the choice of probes")


STAGE = Stage(
    name="export",
    summary="Export to ONNX and prove it equal to the checkpoint",
    config=ExportConfig,
    inputs=("checkpoint",),
    optional_inputs=("eval_data",),
    outputs=("exported_model", "deploy_bundle"),
    # Of the checkpoint too: deploy hands it to servers that take no export.
    results={"exported_model_uri": str, "checkpoint_uri": str},
    image="export",
    node=Node(gpu="A100", cpu="8", memory="64Gi", shared_memory="16Gi"),
    secrets=(Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),),
)
