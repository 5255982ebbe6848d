"""A TensorRT plan of the ONNX graph. Its package is loaded only when one is asked for.

Written for the Python API of TensorRT 10.13 to 11.4 and checked against the signatures of its bindings; no plan was
built with it here. https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/
"""

from __future__ import annotations

import importlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.core.errors import ActionNeeded, InputError
from components.core.progress import LINE_EVERY_SECONDS
from components.core.serving.model_manifest import TensorRTPlanInfo
from components.export.component import ExportConfig
from components.export.sessions import DIMENSIONS, INPUTS, OUTPUT

PLAN_FILE = "model.plan"
_DEVICE = "cuda"
# Least, best and greatest size of one axis of the plan's inputs.
Range = tuple[int, int, int]
_log = logging.getLogger(__name__)


def load_tensorrt() -> Any:
    """The package ``tensorrt``. Raises ActionNeeded when it is not installed or there is no GPU."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ActionNeeded(
            f"export_to_trt needs TensorRT ({error}): pip install '.[tensorrt]', as the export image has it"
        ) from None
    if not torch.cuda.is_available():
        raise ActionNeeded("export_to_trt builds on the GPU that will serve, and there is none: run export on one")
    return trt


def build_plan(trt: Any, model: Path, directory: Path, config: ExportConfig, longest: int) -> TensorRTPlanInfo:
    """Build ``directory/model.plan`` from the graph ``model``; ``longest`` is the most tokens of a text.

    Every precision is the graph's own: the network is strongly typed, so fp16 weights, fp32 islands and Q/DQ nodes mean
    what they say, and the builder has no precision flags (TensorRT 11 took them away). Raises InputError when TensorRT
    cannot parse or build it.
    """
    started = time.monotonic()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        problems = "; ".join(parser.get_error(place).desc() for place in range(min(parser.num_errors, 3)))
        raise InputError(f"TensorRT {trt.__version__} cannot read the graph ({problems}): change opset or quant_cfg")
    batch, length = choose_ranges(config, longest)
    options = _options(trt, builder, config)
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        name = network.get_input(place).name
        shapes = [(b,) if name == DIMENSIONS else (b, n) for b, n in zip(batch, length, strict=True)]
        profile.set_shape(name, *shapes)
    if options.add_optimization_profile(profile) < 0:
        raise InputError(f"TensorRT takes no profile of {batch} texts x {length} tokens: change the trt_ settings")
    options.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, options)
    if plan is None:
        raise InputError(
            f"TensorRT {trt.__version__} could not build a plan of {batch[2]} texts x {length[2]} tokens, its messages "
            f"stand above: lower trt_max_batch, or set use_dimension_arg=false"
        )
    directory.mkdir()
    (directory / PLAN_FILE).write_bytes(plan)
    major, minor = torch.cuda.get_device_capability()
    _log.info("TensorRT plan built in %.0f s: %.0f MB", time.monotonic() - started, plan.nbytes / 1e6)
    return TensorRTPlanInfo(
        tensorrt=trt.__version__,
        compute_capability=f"{major}.{minor}",
        gpu=torch.cuda.get_device_name(),
        version_compatible=config.trt_version_compatible,
        hardware_compatibility=config.trt_hardware_compatibility,
        batch=batch,
        length=length,
    )


def choose_ranges(config: ExportConfig, longest: int) -> tuple[Range, Range]:
    """Batch sizes and lengths of the profile. Raises InputError when it would not take what was trained."""
    most = config.trt_max_seq_len or longest
    if most < longest:
        raise InputError(
            f"trt_max_seq_len = {most}: the model was trained with texts of {longest} tokens, and the plan would "
            f"refuse what was evaluated: leave it out, or train with shorter texts"
        )
    best = min(config.trt_opt_seq_len, most)
    least = min(config.trt_min_seq_len, best)
    return (config.trt_min_batch, config.trt_opt_batch, config.trt_max_batch), (least, best, most)


def _options(trt: Any, builder: Any, config: ExportConfig) -> Any:
    options = builder.create_builder_config()
    if config.trt_version_compatible:
        options.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    level = config.trt_hardware_compatibility.upper()
    options.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    options.profiling_verbosity = getattr(trt.ProfilingVerbosity, config.profiling_verbosity.upper())
    return options


def _monitor(trt: Any) -> Any:
    """Says now and then what TensorRT does; building takes many minutes."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT is imported where it is there
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.last_line = time.monotonic()

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.last_line >= LINE_EVERY_SECONDS:
                self.last_line = now
                _log.info("TensorRT: %s, step %d of %d", phase_name, step + 1, self.steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


class PlanSession:
    """A plan on the GPU that it was built on. Raises InputError when TensorRT does not load it."""

    def __init__(self, trt: Any, plan: Path, facts: TensorRTPlanInfo, dimension: int) -> None:
        self.name = f"TensorRT {trt.__version__}"
        self._trt, self._facts, self._dimension = trt, facts, dimension
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        # A version-compatible plan carries the runtime of its own version.
        self._runtime.engine_host_code_allowed = facts.version_compatible
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise InputError(
                f"TensorRT {trt.__version__} does not load the plan that it built: its messages stand above"
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self._takes_dimensions = DIMENSIONS in names

    def embed(self, ids: np.ndarray, mask: np.ndarray, dimension: int | None = None) -> np.ndarray:
        most, least = self._facts.batch[2], self._facts.length[0]
        short = max(least - ids.shape[1], 0)
        ids, mask = (np.pad(array, ((0, 0), (0, short))) for array in (ids, mask))
        parts = [slice(start, start + most) for start in range(0, len(ids), most)]
        return np.concatenate([self._run(ids[part], mask[part], dimension or self._dimension) for part in parts])

    def _run(self, ids: np.ndarray, mask: np.ndarray, dimension: int) -> np.ndarray:
        arrays = dict(zip(INPUTS, (ids, mask), strict=True))
        if self._takes_dimensions:
            arrays[DIMENSIONS] = np.full(len(ids), dimension, dtype=np.int64)
        # Kept until the stream is done: TensorRT knows only their addresses.
        tensors = {name: torch.from_numpy(array).to(_DEVICE) for name, array in arrays.items()}
        for name, tensor in tensors.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        output = _output(self._trt)
        self._context.set_output_allocator(OUTPUT, output)
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise InputError(f"the plan does not take {ids.shape[0]} texts of {ids.shape[1]} tokens: see above")
        stream.synchronize()
        return output.vectors()


def _output(trt: Any) -> Any:
    """Memory for the vectors, whose width is known only when they are computed."""

    class Output(trt.IOutputAllocator):  # type: ignore[misc]  # TensorRT is imported where it is there
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = torch.empty(0, dtype=torch.uint8)
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(self, _name: str, _memory: int, size: int, _alignment: int, _stream: int) -> int:
            self.memory = torch.empty(max(size, 1), dtype=torch.uint8, device=_DEVICE)
            return self.memory.data_ptr()

        def notify_shape(self, _name: str, shape: tuple[int, ...]) -> None:
            self.shape = tuple(shape)

        def vectors(self) -> np.ndarray:
            count = int(np.prod(self.shape))
            return self.memory[: 4 * count].view(torch.float32).reshape(self.shape).cpu().numpy()

    return Output()
