"""How serving images take a model of one's own; generations differ, so the version in an image's tag decides.

Sources: NVIDIA's documentation of each NIM generation; for vLLM the API of 0.24. None of the images was run here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from components.core.serving.api import ApiName
from components.core.serving.bundle import Bundle
from components.core.serving.model_manifest import ONNX_FOLDER, TENSORRT_FOLDER
from components.core.serving.vector_limits import Precision

MODEL_PATH = "/mnt/models"  # KServe mounts the model here.
PORT = 8000
_LENGTH = "{length}"
_NIM_PREFIXES = ("query: ", "passage: ")


@dataclass(frozen=True)
class Contract:
    """What an image must be told, and what it does with a model.

    ``model_folder`` lies below the model's directory. Names of environment variables: ``model_env`` take that
    directory, ``cache_env`` the writable directory ``cache``, ``name_env`` the served name, ``length_env`` the longest
    text in tokens, ``batch_env`` the most texts that a TensorRT plan takes at once; ``fixed_env`` are set as they
    stand. ``command`` and ``arguments`` may hold {model}, {name}, {length} and {gpus}. ``prefixes`` are what it puts
    before queries and passages; None when the model decides. ``one_length``: it cuts queries and passages alike.
    ``precision`` is what it computes in; None is the export's.
    """

    name: str
    title: str
    serves: Literal["exported_model", "checkpoint"]
    user: int
    cache: str
    api: ApiName = "nim"
    ready: str = "/v1/health/ready"
    live: str = "/v1/health/live"
    metrics: str = "/v1/metrics"
    model_folder: str = ""
    model_env: tuple[str, ...] = ()
    cache_env: tuple[str, ...] = ()
    name_env: tuple[str, ...] = ()
    length_env: tuple[str, ...] = ()
    batch_env: tuple[str, ...] = ()
    fixed_env: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    prefixes: tuple[str, str] | None = None
    one_length: bool = False
    precision: Precision | None = None
    gpus: int = 1
    cache_size: str = "30Gi"
    needs_shared_memory: bool = True
    needs_writable_root: bool = True
    reads_ngc_key: bool = False

    def build_environment(
        self, bundle: Bundle | None, *, served_name: str, model_path: str = MODEL_PATH
    ) -> dict[str, str]:
        """Environment variables that make the image serve the model under ``served_name``.

        Without ``bundle``, for any model, those of its length and batch are left out.
        """
        values = dict.fromkeys(self.model_env, f"{model_path}/{self.model_folder}".rstrip("/"))
        values |= dict.fromkeys(self.cache_env, self.cache) | dict.fromkeys(self.name_env, served_name)
        if bundle:
            values |= dict.fromkeys(self.length_env, str(get_max_length(bundle)))
        if bundle and bundle.manifest.plan:
            values |= dict.fromkeys(self.batch_env, str(bundle.manifest.plan.batch[2]))
        return values | dict(self.fixed_env)

    def fill_arguments(
        self, arguments: tuple[str, ...], bundle: Bundle | None, *, served_name: str, gpus: int
    ) -> list[str]:
        """``command`` or ``arguments`` for this model; without ``bundle`` the option of its length is left out."""
        values: dict[str, str | int] = {"model": MODEL_PATH, "name": served_name, "gpus": max(gpus, 1)}
        if bundle:
            values["length"] = get_max_length(bundle)
        elif _LENGTH in arguments:
            place = arguments.index(_LENGTH)
            arguments = arguments[: place - 1] + arguments[place + 1 :]
        return [argument.format_map(values) for argument in arguments]

    def apply_precision(self, bundle: Bundle) -> Bundle:
        """``bundle`` with the limits of what the image computes in."""
        if self.precision is None:
            return bundle
        return replace(bundle, manifest=bundle.manifest.model_copy(update={"precision": self.precision}))

    @property
    def export_folder(self) -> str:
        """Where the served files lie in ``exported_model``."""
        return f"{self.model_folder or ONNX_FOLDER}/"


def get_max_length(bundle: Bundle) -> int:
    """Tokens of the longest text that the model takes."""
    return max(bundle.encoder.query_max_length, bundle.encoder.passage_max_length)


def _nim_1(folder: str) -> Contract:
    return Contract(
        f"nim-{folder}",
        "NIM 1.x",
        "exported_model",
        user=1000,
        cache="/opt/nim/.cache",
        model_folder=folder,
        model_env=("NIM_CUSTOM_MODEL",),
        cache_env=("NIM_CACHE_PATH",),
        name_env=("NIM_SERVED_MODEL_NAME",),
        length_env=("NIM_TRITON_MAX_SEQ_LENGTH",),
        batch_env=("NIM_TRITON_MAX_BATCH_SIZE",) if folder == TENSORRT_FOLDER else (),
        prefixes=_NIM_PREFIXES,
        one_length=True,
        reads_ngc_key=True,
    )


def _nim_2(model_env: str, name_env: str, length_env: str) -> Contract:
    return Contract(
        "nim-checkpoint",
        "NIM 2.x",
        "checkpoint",
        user=1000,
        cache="/opt/cache",
        model_env=(model_env,),
        name_env=(name_env,),
        length_env=(length_env,),
        one_length=True,
        precision="bf16",
        reads_ngc_key=True,
    )


ONNX_SERVER = Contract(
    "onnx-server",
    "the ONNX server",
    "exported_model",
    user=10001,
    cache="/tmp",
    arguments=(
        *("--model", "{model}", "--name", "{name}", "--host", "0.0.0.0"),
        *("--port", str(PORT), "--drain-seconds", "10"),
    ),
    gpus=0,
    cache_size="1Gi",
    needs_shared_memory=False,
    needs_writable_root=False,
)
VLLM = Contract(
    "vllm-pooling",
    "vLLM",
    "checkpoint",
    user=1000,
    cache="/cache",
    api="vllm",
    ready="/health",
    live="/health",
    metrics="/metrics",
    # Prompts and pooling it reads from the checkpoint's sentence-transformers files.
    command=("vllm", "serve"),
    arguments=(
        *("{model}", "--served-model-name", "{name}", "--runner", "pooling", "--max-model-len", _LENGTH),
        *("--tensor-parallel-size", "{gpus}", "--host", "0.0.0.0", "--port", str(PORT)),
    ),
    cache_env=("HOME", "HF_HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
    # USER: torch asks for the name of its user, who is not in the image's passwd.
    fixed_env=(("USER", "vllm"), ("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")),
    one_length=True,
    precision="bf16",
)

Table = tuple[tuple[tuple[int, int], Contract | None], ...]
# From the version on, up to the next entry's; None: how such an image takes a model is not known.


def list_nim_contracts(model_format: str) -> Table:
    """Of NIMs; ``model_format`` is what of an exported model NIM 1.x serves."""
    return (
        ((0, 0), None),
        ((1, 10), _nim_1(model_format)),
        ((2, 0), _nim_2("NIM_MODEL_PATH", "NIM_MODEL_NAME", "NIM_MAX_SEQ_LEN")),
        # From 2.1 on; 2.2 does not start when a name of 2.0 is set, too.
        ((2, 1), _nim_2("NIM_ENGINE_MODEL_PATH", "NIM_ENGINE_MODEL_NAME", "NIM_PIPELINE_MAX_SEQ_LEN")),
        ((3, 0), None),
    )


# vllm/vllm-openai:v0.24.0, and NVIDIA's builds, which are named by year and month. Earlier ones have no /v2/embed.
VLLM_CONTRACTS: Table = (((0, 0), None), ((0, 23), VLLM), ((1, 0), None), ((26, 6), VLLM), ((27, 0), None))
