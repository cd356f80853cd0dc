"""Engines on the device, and the execution contexts that run them.

Only one engine runs at a time, since all of them run on one stream; so all contexts work in the
same activation memory, as much as the largest engine needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl.runtime.backends.device import Device
from drl.runtime.backends.tensorrt.library import Flavour, title
from drl.runtime.backends.tensorrt.manifest import EngineInfo, EngineOptions
from drl.runtime.backends.tensorrt.messages import Messages
from drl.runtime.backends.tensorrt.runtime_cache import RuntimeCache
from drl.runtime.backends.tensorrt.staging import ALIGNMENT

Shape = tuple[int, ...]


class Library:
    """A flavour of TensorRT with its runtime, which deserialises engines.

    Args:
        flavour: Of TensorRT.
        module: Its module.
        device: The contexts' device.
        options: What the engines were built with.
        command: Builds the engines anew.
        cache: Keeps kernels that are compiled here; None where none are.

    Raises:
        BackendError: TensorRT does not start.
    """

    def __init__(
        self,
        flavour: Flavour,
        module: Any,
        device: Device,
        options: EngineOptions,
        command: str,
        cache: RuntimeCache | None = None,
    ) -> None:
        self.flavour = flavour
        self.module = module
        self.device = device
        self.messages = Messages(module, title(flavour))
        self.remedy = f"run `{command} --force`"  # an intact file would be kept otherwise
        self.cache = cache
        try:
            self._runtime = module.Runtime(self.messages.logger)
        except TypeError as error:  # the bindings' word for a null pointer: CUDA does not start
            raise self.messages.failure("does not start", "see `drl-doctor`") from error
        if options.version_compatible:
            self._runtime.engine_host_code_allowed = True

    def load(self, name: str, file: Path, content: bytes, info: EngineInfo) -> "LoadedEngine":
        """Deserialise an engine: what was read from its file, and checked.

        Raises:
            BackendError: TensorRT refuses it, or the device has no memory for its weights.
        """
        with self.device.failures(f"loading the engine of {name}"):
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self.messages.failure(f"cannot load {file}", self.remedy)
        return LoadedEngine(self, name, engine, info)


class LoadedEngine:
    """An engine on the device.

    Attributes:
        name: Of the graph.
        info: What the manifest says of it.
        memory: Bytes of activation memory that its contexts work in.
    """

    def __init__(self, library: Library, name: str, engine: Any, info: EngineInfo) -> None:
        self.name = name
        self.info = info
        self.memory = int(engine.device_memory_size_v2)
        self._library = library
        self._engine = engine
        self._check_tensors()

    @property
    def streamable(self) -> int:
        """Bytes of the weights that need not lie on the device."""
        return int(self._engine.streamable_weights_size)

    def keep_weights(self, budget: int) -> None:
        """Keep so many bytes of the streamable weights on the device, before there are contexts.

        Raises:
            BackendError: TensorRT keeps more.
        """
        with self._library.device.failures(f"placing the weights of {self.name}"):
            self._engine.weight_streaming_budget_v2 = budget
        if self._engine.weight_streaming_budget_v2 > budget:
            raise self._library.messages.failure(
                f"cannot keep only {budget} bytes of the weights of {self.name} on the GPU",
                self._library.remedy,
            )
        self.memory = int(self._engine.device_memory_size_v2)  # with what streaming works in

    def context(
        self, profile: int, activations: "Activations", *, captures: bool = False
    ) -> "Context":
        """A new context for one of the profiles.

        Args:
            profile: Its number.
            activations: What the context works in.
            captures: Whether it will run the same step over and over, which is worth a CUDA graph
                where contexts capture by themselves.

        Raises:
            BackendError: TensorRT cannot make it.
        """
        library = self._library
        with library.device.failures(f"preparing the engine of {self.name}"):
            context = self._new_context(captures)
            if context is None:  # perhaps because arrays that nobody uses fill the memory
                library.device.trim()
                context = self._new_context(captures)
            if context is None:
                raise library.messages.failure(
                    f"cannot make a context of {self.name}", library.remedy
                )
            context.set_device_memory(activations.address, activations.size)
            try:
                context.set_optimization_profile_async(profile, library.device.stream)
            except RuntimeError as error:  # what the binding makes of a refusal
                raise library.messages.failure(
                    f"cannot take profile {profile} of {self.name}: {error}", library.remedy
                ) from error
        return Context(library, self.name, context, activations)

    def _new_context(self, captures: bool) -> Any:
        module = self._library.module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not compiles_here(self._library.flavour):
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._library.cache is not None:
            self._library.cache.attach(config)
        if captures:
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

    def _check_tensors(self) -> None:
        """Hold the engine's tensors to the manifest, before memory is bound to them."""
        engine = self._engine
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        expected = {tensor.name for tensor in (*self.info.inputs, *self.info.outputs)}
        profiles = engine.num_optimization_profiles
        if found != expected or profiles != len(self.info.profiles):
            raise self._library.messages.failure(
                f"has an engine of {self.name} that is not the one that engines.json describes",
                self._library.remedy,
            )


class Activations:
    """The memory that all contexts work in.

    Attributes:
        address, size: Where it is, in bytes.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = max(size, ALIGNMENT)
        purpose = f"what engines work in ({self.size} bytes)"
        self._memory = device.empty((self.size,), "uint8", purpose)
        self.address = device.address(self._memory)


class Context:
    """An execution context that is told only what changes.

    What was put on the stream from it may still run when it is bound anew: TensorRT reads addresses
    and shapes when work is enqueued.
    """

    def __init__(self, library: Library, name: str, context: Any, memory: Activations) -> None:
        self._library = library
        self._name = name
        self._context = context
        self._memory = memory  # which the context works in
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Say what shapes the inputs have. Raises `BackendError` where TensorRT refuses one."""
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    sizes = "x".join(map(str, shape))
                    raise self._failure(f"does not take {name} of {sizes}")
                self._shapes[name] = shape

    def shape(self, name: str) -> Shape:
        """The shape of an output, once all inputs have theirs."""
        return tuple(int(size) for size in self._context.get_tensor_shape(name))

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Say where tensors are. Raises `BackendError` where TensorRT refuses an address."""
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not self._context.set_tensor_address(name, address):
                    raise self._failure(f"does not take {name} at address {address:#x}")
                self._addresses[name] = address

    def enqueue(self) -> None:
        """Put the engine on the stream. Raises `BackendError` where TensorRT refuses to run it."""
        with self._library.device.failures(f"running the engine of {self._name}"):
            if not self._context.execute_async_v3(self._library.device.stream):
                raise self._failure("cannot be run")

    def _failure(self, what: str) -> Exception:
        return self._library.messages.failure(
            f"failed, the engine of {self._name} {what}", self._library.remedy
        )


def captures_itself(flavour: Flavour) -> bool:
    """Whether contexts of the flavour capture CUDA graphs by themselves.

    TensorRT for RTX compiles kernels for the shapes that it meets while it runs, and puts them in
    the place of slower ones; a graph captured from outside would keep the slower ones for ever.
    """
    return compiles_here(flavour)


def compiles_here(flavour: Flavour) -> bool:
    """Whether kernels are compiled where engines run, and are worth keeping."""
    return flavour == "tensorrt-rtx"
