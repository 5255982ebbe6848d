"""finetune: contrastive fine-tuning of the base model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from components.core.encoder.config import EncoderConfig
from components.core.settings import setting
from components.core.stage import Node, Secret, Stage, s3_secrets

_WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")
_MLFLOW = (
    "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_EXPERIMENT_NAME",
)  # fmt: skip


class FinetuneConfig(EncoderConfig):
    """Settings of finetune. Names and defaults are the recipe's where it has them."""

    num_epochs: int = setting(3, "Passes over the training data", form=True, gt=0)
    global_batch_size: int = setting(
        128, "Queries per optimizer step; 128 is scaled down when there are fewer than 2000", form=True, gt=0
    )
    local_batch_size: int = setting(
        4, "Queries per forward and backward pass; where texts are packed, only the size of in-batch negatives", gt=0
    )
    packed_batch_tokens: int = setting(
        24576,
        "Tokens per forward and backward pass where texts are packed (Llama, Ministral, BERT on GPUs); "
        "determines the memory",
        gt=0,
    )
    learning_rate: float = setting(1e-5, "Peak learning rate", form=True, gt=0)
    lr_warmup_steps: int = setting(5, "Warm-up steps until the peak; at most a tenth of all steps", ge=0)
    lr_decay_style: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "Decay to a hundredth of the peak; constant stays at the peak"
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay; none on norms and biases", ge=0)
    optimizer_backend: Literal["auto", "fused_adam"] = setting(
        "auto",
        "Both are AdamW, fused on a GPU, with float32 weights and moments, as the recipe's fused_adam computes it",
        affects_result=False,
    )
    max_grad_norm: float = setting(1.0, "Largest norm of the gradient; longer gradients are scaled down to it", gt=0)
    train_n_passages: int = setting(5, "Passages per query: one positive, the rest hard negatives", form=True, ge=2)
    temperature: float = setting(0.02, "Temperature by which scores are divided, if vectors are normalised", gt=0)
    in_batch_negatives: bool = setting(
        False, "Also score the passages of the other queries in the pass; its size is then local_batch_size"
    )
    mask_same_document: bool = setting(
        True, "In-batch negatives leave out passages of the positive's own document, where the data names documents"
    )
    matryoshka_dimensions: list[Annotated[int, Field(gt=0)]] = setting(
        [], "Also train vectors that are cut to these dimensions, so that short vectors can be served"
    )
    lora_rank: int | None = setting(
        None, "Rank of low-rank additions that are trained instead of the weights (LoRA); null trains the weights", gt=0
    )
    lora_alpha: float = setting(32.0, "Factor of the additions, which are also divided by their rank", gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp8"] = setting(
        "auto",
        "Arithmetic of the forward and backward pass; auto is bf16 on a GPU, fp32 on a CPU; fp8 is bf16 "
        "with the layers' matrix products in 8 bits, on H100 and later",
    )
    attn_implementation: Literal["sdpa", "flash_attention_2", "eager"] | None = setting(
        None, "Attention of transformers over padded texts; null is its default. Packed texts use their own attention"
    )
    num_processes: int | None = setting(
        None,
        "Processes that train together, one per GPU; null starts one for each visible GPU, one on a CPU",
        gt=0,
        affects_result=False,
    )
    parallelism: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "How several GPUs hold the model: ddp completely on each, fsdp sharded over all; auto shards a "
        "model that does not fit",
        affects_result=False,
    )
    gradient_reduction: Literal["fp32", "bf16"] = setting(
        "fp32",
        "Data type in which the gradients of several GPUs are summed, once per step; bf16 sends half as much",
        affects_result=False,
    )
    trainer: Literal["here", "trainjob"] = setting(
        "here",
        "Where training runs: in this pod, or in a TrainJob of Kubeflow Trainer 2 on several nodes",
        affects_result=False,
    )
    num_nodes: int = setting(2, "Nodes of the TrainJob", gt=0, affects_result=False)
    gpus_per_node: int = setting(8, "GPUs of each node of the TrainJob, one process each", gt=0, affects_result=False)
    trainjob_runtime: str = setting(
        "torch-distributed",
        "ClusterTrainingRuntime of the TrainJob, one with a container `node`",
        min_length=1,
        affects_result=False,
    )
    trainjob_image: str | None = setting(
        None,
        "Image of the TrainJob's pods; null is that of the pod in which finetune runs",
        min_length=1,
        affects_result=False,
    )
    trainjob_namespace: str | None = setting(
        None,
        "Namespace of the TrainJob; null is that of the pod, or of the kubeconfig's context",
        min_length=1,
        affects_result=False,
    )
    seed: int = setting(42, "Seed of the order of examples")
    val_every_steps: int | None = setting(
        100, "Steps between measurements of nDCG@10 on the val split, if there is one; null never measures", gt=0
    )
    val_passages: int = setting(5000, "Random passages that these measurements search in addition to the answers", ge=0)
    early_stopping_patience: int | None = setting(
        None, "Stop after this many measurements in a row without an improvement; null never stops early", gt=0
    )
    load_best_model_at_end: bool = setting(
        True, "With a val split, the result is the model with the best nDCG@10 there"
    )
    checkpoint_uri: str | None = setting(
        None,
        "Where training states are kept, so that a killed run resumes: a directory that outlives the pod, "
        "`s3://bucket/prefix` or `gs://bucket/prefix`; null keeps none",
        form=True,
        min_length=1,
        affects_result=False,
    )
    checkpoint_every_seconds: float | None = setting(
        60.0,
        "Seconds between training states, the most that a kill can cost; null saves by steps only",
        gt=0,
        affects_result=False,
    )
    checkpoint_every_steps: int | None = setting(
        1000,
        "Optimizer steps between training states, in addition to those by time; null saves by time only",
        gt=0,
        affects_result=False,
    )
    auto_scale_checkpoint_intervals: bool = setting(
        True, "Save and measure after every third of the steps in runs that are too short for three of them"
    )
    keep_checkpoints: int = setting(2, "Training states kept; older ones are removed", ge=1, affects_result=False)
    tensorboard_uri: str | None = setting(
        None,
        "Where TensorBoard's event files are written, a folder per run: a directory that outlives the pod, "
        "`s3://bucket/prefix` or `gs://bucket/prefix`; null writes none",
        min_length=1,
        affects_result=False,
    )
    hang_timeout_seconds: float | None = setting(
        600.0,
        "Seconds without progress after which the run ends with code 75 and reports where it was; null waits",
        gt=0,
        affects_result=False,
    )

    @field_validator("optimizer_backend", mode="before")
    @classmethod
    def _moments_stay_whole(cls, value: Any) -> Any:
        if value == "flash_adamw":
            raise ValueError(
                "flash_adamw, which rounds moments to 8 bits, is not offered: take auto, and lora_rank or "
                "parallelism=fsdp where memory is short"
            )
        return value


STAGE = Stage(
    name="finetune",
    summary="Fine-tune the base model contrastively",
    config=FinetuneConfig,
    inputs=("training_data",),
    outputs=("checkpoint", "training_report"),
    headline=("examples", "steps", "first_loss", "last_loss"),
    image="gpu",
    node=Node(gpu="H100", cpu="16", memory="128Gi", shared_memory="32Gi"),
    # checkpoints-s3: of checkpoint_uri and tensorboard_uri only; workload identity needs none. Figures go to W&B and
    # MLflow when their Secret exists.
    secrets=(
        Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),
        *s3_secrets("checkpoints-s3"),
        *(Secret(env=name, name="wandb", key=name) for name in _WANDB),
        *(Secret(env=name, name="mlflow", key=name) for name in _MLFLOW),
    ),
)
