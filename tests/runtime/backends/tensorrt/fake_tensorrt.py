"""A library with TensorRT's calls that runs the graphs of its "engines" in ONNX Runtime.

It holds its caller to TensorRT's contract. What TensorRT reports is reported: a False or None, and
lines for the logger. What TensorRT leaves undefined fails an assertion: tensors that are not
allocated, `present` beside `past`, a capture without a run before it, a graph whose context was
changed. Memory is the host's: see `host_device`.
"""

import enum
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from drl.export.tensorrt.sizes import kept_states
from drl.runtime.arrays import Float32
from tests.runtime.backends.tensorrt.bfloat16 import to_bits, to_float32
from tests.runtime.backends.tensorrt.host_device import HostDevice

ACTIVATIONS = 4096
STREAMABLE = 1 << 16
MAGIC = b"fake engine "
_PROMISED = 256


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    """`ILogger`, which applications derive from."""

    Severity = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


class Strategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphs(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class RuntimeCache:
    """`IRuntimeCache`: here it holds how many contexts have been made with it."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    """`IRuntimeConfig`."""

    def __init__(self) -> None:
        self.strategy = Strategy.STATIC
        self.cuda_graph_strategy = CudaGraphs.DISABLED
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy


class FakeTensorRT:
    """The module.

    Attributes:
        engines, runtimes, contexts: All that were made; contexts for as long as they live.
        alive: Engines that live.
        executions: Names of the engines that were put on the stream, outside of captures.
        fail: Names of engines whose next execution is refused.
        starts: Whether CUDA does.
        contexts_fit: Contexts are refused from the next one on, until the device was trimmed
            so often.
        keeps_weights: Whether budgets of weight streaming are ignored.
    """

    ILogger = Logger
    ExecutionContextAllocationStrategy = Strategy
    CudaGraphStrategy = CudaGraphs
    ComputeCapability = enum.Enum("ComputeCapability", ["SM80", "SM89"])

    def __init__(self, device: HostDevice, version: str = "11.0.0.1") -> None:
        self.__version__ = version
        self.device = device
        self.engines: list[Engine] = []  # proxies, which do not keep them
        self.alive: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.runtimes: list[Runtime] = []
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.executions: list[str] = []
        self.fail: set[str] = set()
        self.starts = True
        self.contexts_fit = 0
        self.keeps_weights = False

    def Runtime(self, logger: Logger) -> "Runtime":  # noqa: N802
        if not self.starts:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.runtimes.append(Runtime(self, logger))
        return self.runtimes[-1]


class Runtime:
    """`Runtime`."""

    def __init__(self, library: FakeTensorRT, logger: Logger) -> None:
        self.library, self.logger = library, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> "Engine | None":
        if not content.startswith(MAGIC):
            self.logger.log(Severity.ERROR, "Serialization assertion magicTag == kMAGIC failed.")
            return None
        engine = Engine(self.library, self.logger, json.loads(content.removeprefix(MAGIC)))
        self.library.engines.append(weakref.proxy(engine))
        self.library.alive.add(engine)
        return engine


class Engine:
    """`ICudaEngine`."""

    def __init__(self, library: FakeTensorRT, logger: Logger, described: dict[str, Any]) -> None:
        self.library, self.logger = library, logger
        self.graph = Path(described["graph"])
        self.name = self.graph.stem
        self.bfloat16: list[str] = described["bfloat16"]
        self.keep_ratio: float | None = described["keep_ratio"]
        self.sizes: dict[str, int] = described["sizes"]
        self.profiles: list[dict[str, Any]] = described["profiles"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(self.graph), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = {item.name: item for item in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(self.profiles)
        self.device_memory_size_v2 = ACTIVATIONS * (1 + len(self.inputs))
        self.streamable_weights_size = STREAMABLE * len(self.outputs)
        self.budget: int | None = None  # all weights

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> "Context | None":
        config = how if isinstance(how, RuntimeConfig) else RuntimeConfig()
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy is Strategy.USER_MANAGED
        if self.library.device.trims < self.library.contexts_fit:
            self.logger.log(Severity.ERROR, "createExecutionContext: out of memory")
            return None
        context = Context(self, config)
        if config.cache is not None:
            config.cache.content = config.cache.content or b"kernels of " + self.name.encode()
        self.library.contexts.add(context)
        return context

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self.streamable_weights_size if self.budget is None else self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        assert not any(context.engine is self for context in self.library.contexts)
        if 0 <= budget <= self.streamable_weights_size and not self.library.keeps_weights:
            self.budget = budget


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: Engine, config: RuntimeConfig) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.bindings: set[frozenset[tuple[str, object]]] = set()  # all that it ran with
        self._fresh_shapes = True  # not run since they changed
        self._changes = 0

    def set_device_memory(self, address: int, size: int) -> None:
        self._changed()
        self.memory = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self._device.stream
        self._changed()
        if not 0 <= profile < self.engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = profile
        self.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changed()
        if self.profile is None or name not in self.engine.inputs:
            return self._refuse(f"setInputShape: {name} is not an input, or there is no profile")
        limits = self.engine.profiles[self.profile][name]
        if len(shape) != len(limits["min"]) or not all(
            low <= size <= high
            for size, low, high in zip(shape, limits["min"], limits["max"], strict=True)
        ):
            return self._refuse(f"setInputShape: {name}: {shape} is outside of {limits}")
        self._fresh_shapes |= self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._changed()
        if name not in self.engine.inputs and name not in self.engine.outputs:
            return self._refuse(f"setTensorAddress: there is no tensor {name}")
        assert address % _PROMISED == 0, f"{name} lies at {address:#x}"
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.inputs:
            return self.shapes[name]
        dims = self._dims()
        if self.engine.keep_ratio is not None and "S" in dims:
            dims["K"] = kept_states(self.engine.keep_ratio, dims["S"])
        shape = self.engine.outputs[name].shape
        return tuple(dims[size] if isinstance(size, str) else size for size in shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self._device.stream
        if self.engine.name in self.engine.library.fail:
            self.engine.library.fail.discard(self.engine.name)
            return self._refuse("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (fault)")
        if missing := self.engine.inputs.keys() - self.shapes.keys():
            return self._refuse(f"enqueueV3: no shape for {sorted(missing)}")
        names = self.engine.inputs.keys() | self.engine.outputs.keys()
        if missing := names - self.addresses.keys():
            return self._refuse(f"enqueueV3: address is not set for {sorted(missing)}")
        assert self.memory is not None
        assert self.memory[1] >= self.engine.device_memory_size_v2
        shapes = {name: self.get_tensor_shape(name) for name in names}
        for name, address in self.addresses.items():
            if name.startswith("present_"):
                assert address == self.addresses[name.replace("present_", "past_")]
        recording = self._device.recording
        assert not (recording and self._fresh_shapes), "captured without a run before it"
        self._fresh_shapes = False
        self.bindings.add(frozenset((*shapes.items(), *self.addresses.items())))
        self._put(shapes, dict(self.addresses), self.memory, recording)
        if not recording:
            self.engine.library.executions.append(self.engine.name)
        return True

    @property
    def _device(self) -> HostDevice:
        return self.engine.library.device

    def _put(
        self,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        memory: tuple[int, int],
        recorded: bool,
    ) -> None:
        changes = self._changes

        def work() -> None:
            assert not recorded or changes == self._changes, "its context has been changed"
            self._device.memory.check(*memory, "activation memory")
            self._run(shapes, addresses)

        self._device.put(work)

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        binding = self.engine.session.io_binding()
        wide: dict[str, Float32] = {}
        for tensors, bind in (
            (self.engine.inputs, binding.bind_input),
            (self.engine.outputs, binding.bind_output),
        ):
            for name, item in tensors.items():
                dtype, address = _dtype(item.type), addresses[name]
                narrow = name in self.engine.bfloat16
                size = math.prod(shapes[name]) * (2 if narrow else np.dtype(dtype).itemsize)
                self._device.memory.check(address, size, f"{self.engine.name}: {name}")
                if narrow:
                    wide[name] = to_float32(
                        self._device.memory.view(address, shapes[name], np.uint16)
                    )
                    address = wide[name].ctypes.data
                bind(name, "cpu", 0, dtype, shapes[name], address)
        self.engine.session.run_with_iobinding(binding)
        for name in wide.keys() & self.engine.outputs.keys():
            memory = self._device.memory.view(addresses[name], shapes[name], np.uint16)
            memory[...] = to_bits(wide[name])

    def _dims(self) -> dict[str, int]:
        """Sizes of the named dimensions, which all inputs must agree in."""
        dims: dict[str, int] = dict(self.engine.sizes)
        for name, shape in self.shapes.items():
            for label, size in zip(self.engine.inputs[name].shape, shape, strict=True):
                if isinstance(label, str):
                    assert dims.setdefault(label, size) == size, f"{name} {shape}, but {dims}"
                else:
                    assert label == size
        if "R" in dims:
            assert dims["B"] % dims["R"] == 0
        return dims

    def _changed(self) -> None:
        self._changes += 1

    def _refuse(self, message: str) -> bool:
        self.engine.logger.log(Severity.ERROR, message)
        return False


def _dtype(name: str) -> type[np.generic]:
    kinds: dict[str, type[np.generic]] = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int32)": np.int32,
        "tensor(int64)": np.int64,
    }
    return kinds[name]
