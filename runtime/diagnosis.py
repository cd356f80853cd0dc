"""What this machine can run: libraries, processor, and every backend tried for real."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from drl.plugins.native import Kernels, NativeLibraryError, find_library
from drl.runtime import machine
from drl.runtime.backends.cuda import import_cupy
from drl.runtime.backends.ort_session import import_onnxruntime
from drl.runtime.backends.tensorrt import library as tensorrt
from drl.runtime.errors import BackendError
from drl.runtime.gpu import GpuReport, find_gpus

# Distribution names, with the extra that brings them.
_LIBRARIES = {
    "drl": "",
    "numpy": "",
    "tokenizers": "",
    "onnxruntime": "drl[cpu]",
    "onnxruntime-gpu": "drl[cuda]",
    "torch": "drl[export]",
    "onnx": "drl[export]",
    "onnxscript": "drl[export]",
    "safetensors": "drl[export]",
    "tensorrt": "drl[tensorrt]",
    "tensorrt-rtx": "drl[rtx]",
    "polygraphy": "drl[tensorrt] or drl[rtx]",
    "cupy-cuda13x": "drl[cuda] or drl[tensorrt]",
}


@dataclass(frozen=True)
class Library:
    """A library, its version (None if it is missing), and the extra that brings it."""

    name: str
    version: str | None
    extra: str


@dataclass(frozen=True)
class BackendCheck:
    """Whether something works here, and if not why and how to mend it."""

    name: str
    works: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Processor:
    """The processor as this process sees it; memory in bytes, None where unknown."""

    model: str
    cores: int
    logical: int
    quota: float | None
    instruction_sets: tuple[str, ...]
    memory: int | None
    available_memory: int | None
    default_threads: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything `drl-doctor` shows."""

    python: str
    executable: str
    system: str
    processor: Processor
    graphics: GpuReport
    libraries: tuple[Library, ...]
    native: BackendCheck
    backends: tuple[BackendCheck, ...]

    @property
    def usable(self) -> bool:
        """Whether at least one backend works."""
        return any(backend.works for backend in self.backends)


def diagnose() -> Diagnosis:
    """Look at this machine. Takes seconds at most; changes nothing."""
    graphics = find_gpus()
    return Diagnosis(
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        graphics=graphics,
        libraries=tuple(_library(name, extra) for name, extra in _LIBRARIES.items()),
        native=_check("native kernels", _try_native),
        backends=(
            _check("ONNX Runtime, CPU", _try_cpu),
            _check("ONNX Runtime, CUDA", _try_cuda),
            *(
                _check(tensorrt.title(flavour), partial(_try_tensorrt, flavour, graphics))
                for flavour in tensorrt.FLAVOURS
            ),
        ),
    )


def tiny_model() -> bytes:
    """A model that negates a vector of two, `y = -x`, as a serialised ONNX protobuf.

    Written out by hand, field by field, because the runtime does without the `onnx` library. The
    numbers are the field numbers of onnx.proto.
    """

    def vector(name: bytes) -> bytes:
        shape = _message(2, _message(1, _number(1, 2)))
        return _message(1, name) + _message(2, _message(1, _number(1, 1) + shape))

    node = _message(1, b"x") + _message(2, b"y") + _message(4, b"Neg")
    graph = _message(1, node) + _message(2, b"tiny")
    graph += _message(11, vector(b"x")) + _message(12, vector(b"y"))
    return _number(1, 8) + _message(7, graph) + _message(8, _number(2, 17))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _message(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2, len(content)]) + content


def _processor() -> Processor:
    memory = machine.memory()
    return Processor(
        model=machine.cpu_model(),
        cores=machine.physical_cores(),
        logical=len(machine.available_cpus()),
        quota=machine.cpu_quota(),
        instruction_sets=tuple(machine.instruction_sets()),
        memory=memory[0] if memory else None,
        available_memory=memory[1] if memory else None,
        default_threads=machine.default_threads(),
    )


def _library(name: str, extra: str = "") -> Library:
    try:
        return Library(name, metadata.version(name), extra)
    except metadata.PackageNotFoundError:
        return Library(name, None, extra)


def _check(name: str, attempt: Callable[[], str]) -> BackendCheck:
    try:
        return BackendCheck(name, True, attempt())
    except BackendError as error:
        detail, _, remedy = str(error).partition("; ")
        return BackendCheck(name, False, detail, remedy)


def _try_native() -> str:
    try:
        library = find_library()
        if library.path is None:
            raise BackendError(library.missing)
        return f"{Kernels().isa} instructions, {library.path}"
    except NativeLibraryError as error:
        raise BackendError(str(error)) from error


def _try_cpu() -> str:
    onnxruntime = import_onnxruntime()
    _negate(onnxruntime, "CPUExecutionProvider")
    return f"ran a graph with onnxruntime {onnxruntime.__version__}"


def _try_cuda() -> str:
    onnxruntime = import_onnxruntime()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendError(
            "this onnxruntime is built without CUDA; "
            'in another environment, `pip install "drl[cuda]"`'
        )
    _negate(onnxruntime, "CUDAExecutionProvider")
    import_cupy()
    return f"ran a graph with onnxruntime {onnxruntime.__version__} on the GPU"


def _try_tensorrt(flavour: tensorrt.Flavour, graphics: GpuReport) -> str:
    """See whether a TensorRT library loads, and whether there is a GPU that it has engines for."""
    library = tensorrt.import_library(flavour)
    loaded = f"{tensorrt.version(library)} loads"
    without_gpu = tensorrt.builds_without_gpu(flavour)
    build = "; `drl-build --flavour rtx` builds engines for other machines" if without_gpu else ""
    if not graphics.gpus:
        raise BackendError(f"{loaded}, but {graphics.fault}{build}")
    gpu = graphics.gpus[0]
    if without_gpu and gpu.compute_capability not in (known := tensorrt.targets(library)):
        raise BackendError(
            f"{loaded}, but has no engines for the {gpu.name} of compute capability "
            f"{gpu.compute_capability}, only for {', '.join(known)}{build}"
        )
    import_cupy()
    return f"{loaded}, for the {gpu.name} of compute capability {gpu.compute_capability}"


def _negate(onnxruntime: Any, provider: str) -> None:
    """Run the tiny model. Raises `BackendError` if it fails or another provider ran it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is reported here, not on standard error
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(tiny_model(), options, providers=[provider])
        ran_on = session.get_providers()[0]
        (result,) = session.run(None, {"x": np.array([1.0, -2.0], np.float32)})
    except Exception as error:  # the library has a class per status code, without a root
        message = " ".join(str(error).split())
        raise BackendError(f"onnxruntime cannot run a graph ({message}); reinstall it") from error
    if ran_on != provider:
        raise BackendError(f"{provider} did not start; check the driver with `nvidia-smi`")
    if result.tolist() != [-1.0, 2.0]:
        raise BackendError(f"onnxruntime computes -(1, -2) as {result.tolist()}; reinstall it")
