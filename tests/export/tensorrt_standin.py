"""TensorRT's Python API as far as export uses it, with the signatures and members of its bindings.

Read off the pybind11 bindings of tensorrt-cu13 10.13.3.9 and 11.4.0.106: argument names, types (another one is a
TypeError, as there), attributes that may be set, members of enumerations. A "plan" is computed by ONNX Runtime from the
graph that was parsed, through the addresses that TensorRT would get, and refuses what its profile does not hold.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

_GONE_IN_11 = (
    "FP16",
    "INT8",
    "FP8",
    "BF16",
    "INT4",
    "FP4",
    "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS",
)
_BUILDER_FLAGS = (
    "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS", "SAFETY_SCOPE", "DIRECT_IO",
    "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "ERROR_ON_TIMING_CACHE_MISS", "DISABLE_COMPILATION_CACHE",
    "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "REFIT_INDIVIDUAL", "STRICT_NANS", "MONITOR_MEMORY",
    "EDITABLE_TIMING_CACHE", "DISTRIBUTIVE_INDEPENDENCE",
)  # fmt: skip
_CONFIG_ATTRIBUTES = (
    "avg_timing_iterations", "builder_optimization_level", "engine_capability", "flags",
    "hardware_compatibility_level", "max_aux_streams", "plugins_to_serialize", "profile_stream", "profiling_verbosity",
    "progress_monitor", "runtime_platform", "tiling_optimization_level",
)  # fmt: skip


def _typed(value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"incompatible function arguments: {value!r} is no {kind}")


def tensorrt(version: str, *, steps: int = 3) -> SimpleNamespace:
    """The module ``tensorrt`` of ``version``, ``"10.13.3.9"`` or ``"11.4.0.106"``. ``built`` lists what was built."""
    old = version.startswith("10.")
    trt = SimpleNamespace(__version__=version, built=[])
    trt.BuilderFlag = Enum("BuilderFlag", _BUILDER_FLAGS + (_GONE_IN_11 if old else ()))
    trt.HardwareCompatibilityLevel = Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY")
    trt.ProfilingVerbosity = Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
    flags = {"PREFER_JIT_PYTHON_PLUGINS": 2, "PREFER_AOT_PYTHON_PLUGINS": 3, "STRONGLY_TYPED": 1}
    trt.NetworkDefinitionCreationFlag = IntEnum(
        "NetworkDefinitionCreationFlag", flags | ({"EXPLICIT_BATCH": 0} if old else {})
    )

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self, min_severity: int = 2) -> None:
            _typed(min_severity, int)

    class IProgressMonitor:
        pass

    class IOutputAllocator:
        pass

    class Network:
        def __init__(self) -> None:
            self.inputs: list[Any] = []
            self.model: Path | None = None

        @property
        def num_inputs(self) -> int:
            return len(self.inputs)

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[tuple[int, ...]]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            _typed(input, str)
            for shape in (min, opt, max):
                _typed(shape, (tuple, list))
            if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError("Shape provided for min, opt, and max must be ordered")
            self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    class Config:
        def __init__(self) -> None:
            self.__dict__.update({"set_flags": [], "profiles": []})

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in _CONFIG_ATTRIBUTES:
                raise AttributeError(f"'IBuilderConfig' object has no attribute '{name}'")
            kinds = {
                "hardware_compatibility_level": trt.HardwareCompatibilityLevel,
                "profiling_verbosity": trt.ProfilingVerbosity,
                "progress_monitor": IProgressMonitor,
            }
            _typed(value, kinds.get(name, object))
            self.__dict__[name] = value

        def set_flag(self, flag: Any) -> None:
            _typed(flag, trt.BuilderFlag)
            self.set_flags.append(flag.name)

        def add_optimization_profile(self, profile: Any) -> int:
            _typed(profile, Profile)
            self.profiles.append(profile)
            return len(self.profiles) - 1

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            _typed(network, Network)
            _typed(logger, Logger)
            self._network = network
            self.errors: list[str] = []

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: self.errors[index])

        def parse_from_file(self, model: str) -> bool:
            _typed(model, str)
            try:
                graph = onnx.load(model, load_external_data=False).graph
            except Exception as error:
                self.errors.append(str(error))
                return False
            self._network.model = Path(model)
            self._network.inputs = [SimpleNamespace(name=value.name, is_shape_tensor=False) for value in graph.input]
            return True

    class HostMemory(bytes):
        @property
        def nbytes(self) -> int:
            return len(self)

    class Builder:
        def __init__(self, logger: Any) -> None:
            _typed(logger, Logger)

        def create_network(self, flags: int = 0) -> Any:
            _typed(flags, int)
            if old and not flags & (1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
                raise AssertionError("a weakly typed network needs precision flags")
            return Network()

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            _typed(network, Network)
            _typed(config, Config)
            monitor = config.__dict__.get("progress_monitor")
            if monitor is not None:
                monitor.phase_start("Building Engine", None, steps)
                if not all(monitor.step_complete("Building Engine", step) for step in range(steps)):
                    return None
                monitor.phase_finish("Building Engine")
            trt.built.append(config)
            if set(config.profiles[0].shapes) != {tensor.name for tensor in network.inputs}:
                return None
            return HostMemory(json.dumps([str(network.model), config.profiles[0].shapes]).encode())

    class Context:
        def __init__(self, plan: bytes) -> None:
            model, self._shapes = json.loads(plan)
            self._session = onnxruntime.InferenceSession(model)
            self._given: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._output: Any = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            _typed(shape, (tuple, list))
            self._given[name] = tuple(shape)
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            _typed(memory, int)
            self._addresses[name] = memory
            return True

        def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
            _typed(output_allocator, IOutputAllocator)
            self._output = (name, output_allocator)
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            _typed(stream_handle, int)
            for name, shape in self._given.items():
                low, _, high = self._shapes[name]
                if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                    return False
            feed = {name: _read(self._addresses[name], shape) for name, shape in self._given.items()}
            name, allocator = self._output
            found = self._session.run([name], feed)[0]
            address = allocator.reallocate_output_async(name, 0, found.nbytes, 256, stream_handle)
            ctypes.memmove(address, found.tobytes(), found.nbytes)
            allocator.notify_shape(name, found.shape)
            return True

    class Engine:
        def __init__(self, plan: bytes) -> None:
            self._plan = plan
            self._names = [*json.loads(plan)[1], "embeddings"]

        @property
        def num_io_tensors(self) -> int:
            return len(self._names)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def create_execution_context(self) -> Any:
            return Context(self._plan)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            _typed(logger, Logger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            flags = trt.built[-1].set_flags
            if "VERSION_COMPATIBLE" in flags and not self.engine_host_code_allowed:
                return None
            return Engine(serialized_engine)

    public: tuple[Callable[..., Any], ...] = (Logger, IProgressMonitor, IOutputAllocator, OnnxParser, Builder, Runtime)
    for made in public:
        setattr(trt, made.__name__, made)
    return trt


def _read(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """int64 values at ``address``."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address)).reshape(shape).copy()
