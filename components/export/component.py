"""export: the checkpoint as ONNX or TensorRT plan, proven equal to it, with the probes that prove it when served."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage


class ExportConfig(Settings):
    """Settings of export. Names and defaults are the recipe's where it has them."""

    enabled: bool = setting(
        True, "false writes no ONNX: exported_model holds the checkpoint itself, as NIM 2.x and vLLM take it"
    )
    opset: int = setting(20, "ONNX operator set", ge=18)
    export_dtype: Literal["fp32", "fp16"] = setting("fp32", "Precision of the exported weights")
    use_dimension_arg: bool = setting(
        True, "The graph takes `dimensions` as a third input: how much of each vector is kept"
    )
    override_layernorm_precision_to_fp32: bool = setting(True, "export_dtype=fp16 leaves normalisation layers in fp32")
    override_layers_to_fp32: list[str] = setting(
        [], "More modules that fp16 leaves in fp32, by name (`layers.0.*`); pooling and scaling to length 1 always are"
    )
    quant_cfg: Literal["fp8", "int8_sq", "int8"] | None = setting(
        None,
        "8-bit matrix products: `fp8` and `int8_sq` (SmoothQuant) by NVIDIA ModelOpt for GPUs, calibrated on texts of "
        "eval_data; `int8` by ONNX Runtime for CPUs",
        form=True,
    )
    calibration_batch_size: int = setting(64, "Texts in a batch of calibration", gt=0)
    calibration_texts: int = setting(512, "Queries and passages of eval_data that calibrate a quantised model", ge=8)
    # TensorRT.
    export_to_trt: bool = setting(False, "Also build a TensorRT plan, in the precision of the ONNX graph", form=True)
    trt_min_batch: int = setting(1, "Fewest texts in a batch of the plan", gt=0)
    trt_opt_batch: int = setting(16, "Texts in a batch that the plan is tuned for", gt=0)
    trt_max_batch: int = setting(64, "Most texts in a batch of the plan", gt=0)
    trt_min_seq_len: int = setting(3, "Shortest text of the plan in tokens", gt=0)
    trt_opt_seq_len: int = setting(128, "Length that the plan is tuned for", gt=0)
    trt_max_seq_len: int | None = setting(
        None, "Longest text of the plan; null is the longest that the model was trained with", gt=0
    )
    trt_version_compatible: bool = setting(True, "The plan also runs in later versions of TensorRT, somewhat slower")
    trt_hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = setting(
        "none", "GPUs that the plan runs on: the model it was built on, that compute capability, or all since Ampere"
    )
    profiling_verbosity: Literal["none", "layer_names_only", "detailed"] = setting(
        "layer_names_only", "What the plan tells profilers of its layers"
    )
    # Proof.
    num_probes: int = setting(64, "Texts whose reference vectors travel with the model", ge=8)
    parity_queries: int = setting(
        200, "Queries of eval_data that must find the checkpoint's passages; 0 asks none", ge=0
    )
    parity_passages: int = setting(500, "Passages that they are searched in, their answers first", ge=10)
    encode_batch_tokens: int = setting(16384, "Tokens encoded at once, padding included", gt=0)
    seed: int = setting(42, "Seed of the choice of probes and of texts for calibration and search")

    @model_validator(mode="after")
    def _possible(self) -> ExportConfig:
        if not self.enabled and (self.quant_cfg or self.export_to_trt):
            raise ValueError("enabled=false writes no ONNX, which quant_cfg and export_to_trt need: leave them out")
        if self.quant_cfg == "int8" and (self.export_to_trt or self.export_dtype == "fp16"):
            raise ValueError("quant_cfg=int8 is ONNX Runtime's, for CPUs and from fp32: for a GPU take int8_sq or fp8")
        for what in ("batch", "seq_len"):
            low, best, high = (getattr(self, f"trt_{which}_{what}") for which in ("min", "opt", "max"))
            if not low <= best or (high is not None and best > high):
                raise ValueError(f"trt_min_{what} <= trt_opt_{what} <= trt_max_{what} must hold: {low}, {best}, {high}")
        return self


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
