"""export: the checkpoint as ONNX or TensorRT plan, proven equal to it, with the probes that prove it when served."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage


class ExportConfig(Settings):
    """Settings of export. Names and defaults are the recipe's where it has them."""

    enabled: bool = setting(
        True, "false writes no ONNX: exported_model contains the checkpoint itself, which NIM 2.x and vLLM take"
    )
    opset: int = setting(20, "ONNX operator set", ge=18)
    export_dtype: Literal["fp32", "fp16"] = setting("fp32", "Precision of the exported weights")
    use_dimension_arg: bool = setting(
        True, "Give the graph a third input, `dimensions`: how many numbers of each vector are kept"
    )
    override_layernorm_precision_to_fp32: bool = setting(
        True, "Keep normalisation layers in fp32 with export_dtype=fp16"
    )
    override_layers_to_fp32: list[str] = setting(
        [],
        "Further modules that stay in fp32 with fp16, by name (`layers.0.*`); pooling and scaling to length "
        "1 always do",
    )
    quant_cfg: Literal["fp8", "int8_sq", "int8"] | None = setting(
        None,
        "8-bit matrix products: `fp8` and `int8_sq` (SmoothQuant) by NVIDIA ModelOpt for GPUs, calibrated on texts of "
        "eval_data; `int8` by ONNX Runtime for CPUs",
        form=True,
    )
    calibration_batch_size: int = setting(64, "Texts per calibration batch", gt=0)
    calibration_texts: int = setting(
        512, "Number of queries and passages of eval_data that calibrate a quantised model", ge=8
    )
    # TensorRT.
    export_to_trt: bool = setting(False, "Also build a TensorRT plan, in the precision of the ONNX graph", form=True)
    trt_min_batch: int = setting(1, "Smallest batch of the plan, in texts", gt=0)
    trt_opt_batch: int = setting(16, "Batch for which the plan is tuned, in texts", gt=0)
    trt_max_batch: int = setting(64, "Largest batch of the plan, in texts", gt=0)
    trt_min_seq_len: int = setting(3, "Shortest text of the plan in tokens", gt=0)
    trt_opt_seq_len: int = setting(128, "Length for which the plan is tuned, in tokens", gt=0)
    trt_max_seq_len: int | None = setting(
        None, "Longest text of the plan in tokens; null is the longest of the model's training", gt=0
    )
    trt_version_compatible: bool = setting(True, "The plan also runs in later versions of TensorRT, somewhat slower")
    trt_hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = setting(
        "none", "GPUs that the plan runs on: the model it was built on, that compute capability, or all since Ampere"
    )
    profiling_verbosity: Literal["none", "layer_names_only", "detailed"] = setting(
        "layer_names_only", "What the plan reveals to profilers about its layers"
    )
    # References.
    num_probes: int = setting(64, "Number of texts whose reference vectors are published with the model", ge=8)
    parity_queries: int = setting(
        200,
        "Number of queries of eval_data that must find the same passages as with the checkpoint; 0 skips this check",
        ge=0,
    )
    parity_passages: int = setting(500, "Number of passages in which they are searched, their answers first", ge=10)
    encode_batch_tokens: int = setting(16384, "Tokens encoded at once, padding included", gt=0)
    seed: int = setting(42, "Seed for choosing probes and texts for calibration and search")

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
    headline=("parity_mean_cosine", "parity_min_cosine"),
    image="export",
    node=Node(gpu="A100", cpu="8", memory="64Gi", shared_memory="16Gi"),
    secrets=(Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),),
)
