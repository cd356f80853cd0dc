"""An NVIDIA GPU through CuPy: its memory, and one stream on which everything happens in order."""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from drl.runtime.arrays import Array, BackendArray
from drl.runtime.backends.limits import LESS_MEMORY
from drl.runtime.backends.ranking import rank_on
from drl.runtime.errors import BackendError
from drl.runtime.gpu import find_gpus

# Not an extra: `cuda` would put onnxruntime-gpu over an onnxruntime for the CPU.
_INSTALL = 'install it with `pip install "cupy-cuda13x[ctk]"`'
_NO_GPU = "check with `nvidia-smi`, or use device='cpu'"
# `cudaMemcpyKind`, from driver_types.h.
_TO_DEVICE, _TO_HOST, _WITHIN = 1, 2, 3
# Bytes: no array of the host larger than this is page-locked, which the system has little of.
_MOST_PINNED = 16 << 20


def open_gpu(index: int = 0) -> "CudaDevice":
    """A GPU, as CUDA numbers them.

    Raises:
        BackendError: There is no driver or no such GPU, or CuPy is missing or does not work.
    """
    report = find_gpus()
    if not report.gpus:
        raise BackendError(f"{report.fault}; {_NO_GPU}")
    if index >= len(report.gpus):
        count = len(report.gpus)
        names = "cuda:0 only" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BackendError(
            f"there is no GPU cuda:{index}; this process may use {names} "
            "(CUDA_VISIBLE_DEVICES can hide others)"
        )
    return CudaDevice(import_cupy(), index)


def import_cupy() -> Any:
    """The `cupy` module. Raises `BackendError` if it is missing or broken."""
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise BackendError(f"CuPy is incomplete ({error}); {_INSTALL}") from error
        raise BackendError(
            f"CuPy, which keeps the caches on the GPU, is not installed; {_INSTALL}"
        ) from None
    except ImportError as error:
        reason = next((line for line in str(error).splitlines() if line.strip("= ")), "no reason")
        raise BackendError(f"CuPy does not load ({reason.strip()}); {_INSTALL}") from error


class CudaArrays:
    """`ArrayLibrary` of CuPy on one GPU and one stream. Every method enters both by itself.

    Args:
        cupy: The module.
        index: The GPU.
        stream: Where everything is put.
    """

    def __init__(self, cupy: Any, index: int, stream: Any) -> None:
        self._cupy = cupy
        self._index = index
        self._stream = stream

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        """See `ArrayLibrary.ordered`. Raises `BackendError` where CUDA fails inside."""
        with self.failures("work on the GPU"), self._entered():
            yield

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        with self._device(), self._stream:
            yield

    def _device(self) -> Any:
        """The GPU. One object would keep what threads come back to in a list of them all."""
        return self._cupy.cuda.Device(self._index)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> BackendArray:
        """See `ArrayLibrary.zeros`."""
        with self._allocating(shape, dtype, purpose):
            return self._typed(self._cupy.zeros(shape, dtype))

    def full(
        self, shape: Sequence[int], value: float, dtype: DTypeLike, purpose: str
    ) -> BackendArray:
        """See `ArrayLibrary.full`."""
        with self._allocating(shape, dtype, purpose):
            return self._typed(self._cupy.full(shape, value, dtype))

    def empty(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> BackendArray:
        """As `zeros`, of whatever numbers."""
        with self._allocating(shape, dtype, purpose):
            return self._typed(self._cupy.empty(shape, dtype))

    def gather(self, array: BackendArray, rows: list[int]) -> BackendArray:
        """See `ArrayLibrary.gather`."""
        shape = (len(rows), *array.shape[1:])
        with self._allocating(shape, array.dtype, "some rows of a batch"):
            if not array.nbytes:
                return self._typed(self._cupy.empty(shape, array.dtype))
            places = self._cupy.asarray(np.array(rows, np.int64))
            return self._typed(self._cupy.take(array, places, axis=0))

    def from_host(self, array: Array, purpose: str) -> BackendArray:
        """See `ArrayLibrary.from_host`: a copy."""
        with self._allocating(array.shape, array.dtype, purpose):
            return self._typed(self._cupy.asarray(np.ascontiguousarray(array)))

    def to_host(self, array: Any) -> Array:
        """See `ArrayLibrary.to_host`; waits for the stream."""
        with self.failures("copying from the GPU"), self._entered():
            host: Array = array.get()
            return host

    @contextlib.contextmanager
    def failures(self, doing: str) -> Iterator[None]:
        """Turn what CuPy raises into a `BackendError`: "{doing} failed: …"."""
        cuda = self._cupy.cuda
        try:
            yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            raise BackendError(
                f"{doing} failed: {error}; GPU {self._index} may have to be used from a new process"
            ) from error
        except cuda.memory.OutOfMemoryError as error:
            raise BackendError(
                f"{doing} failed: GPU {self._index} has no memory left ({self._free()}); "
                f"{LESS_MEMORY}"
            ) from error
        except cuda.compiler.CompileException as error:
            reason = " ".join(str(error).split())
            raise BackendError(
                f"{doing} failed: CuPy cannot compile a kernel for GPU {self._index} ({reason}); "
                "reinstall it with `pip install --force-reinstall 'cupy-cuda13x[ctk]'`"
            ) from error

    def _free(self) -> str:
        free, total = self._device().mem_info
        return f"{megabytes(free)} of {megabytes(total)} are free"

    @contextlib.contextmanager
    def _allocating(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> Iterator[None]:
        """Enter device and stream, and say what there was no memory for."""
        with self.failures(f"making {purpose}"), self._entered():
            try:
                yield
            except self._cupy.cuda.memory.OutOfMemoryError as error:
                needed = math.prod(shape) * np.dtype(dtype).itemsize
                raise BackendError(
                    f"GPU {self._index} has no {megabytes(needed)} left for {purpose} "
                    f"({self._free()}); {LESS_MEMORY}"
                ) from error

    @staticmethod
    def _typed(array: Any) -> BackendArray:
        found: BackendArray = array
        return found


class CudaDevice:
    """`Device` of CuPy.

    Args:
        cupy: The module.
        index: The GPU, as CUDA numbers them.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self._cupy = cupy
        self._index = index
        runtime = cupy.cuda.runtime
        try:
            device = cupy.cuda.Device(index)
            with device:
                self._stream = cupy.cuda.Stream(non_blocking=True)
            properties = runtime.getDeviceProperties(index)
        except runtime.CUDARuntimeError as error:
            raise BackendError(
                f"CuPy {cupy.__version__} cannot use GPU {index} ({error}); its driver may be "
                "older than CuPy's CUDA: update the driver, or install the CuPy of an earlier CUDA"
            ) from error
        self._name = properties["name"].decode(errors="replace")
        capability: str = device.compute_capability
        self._capability = f"{capability[:-1]}.{capability[-1]}"
        self._arrays = CudaArrays(cupy, index, self._stream)

    @property
    def name(self) -> str:
        """See `Device.name`."""
        return f"{self._name} (cuda:{self._index})"

    @property
    def index(self) -> int:
        """The GPU, as CUDA numbers them."""
        return self._index

    @property
    def compute_capability(self) -> str:
        """See `Device.compute_capability`."""
        return self._capability

    @property
    def arrays(self) -> CudaArrays:
        """See `Device.arrays`."""
        return self._arrays

    @property
    def stream(self) -> int:
        """See `Device.stream`."""
        handle: int = self._stream.ptr
        return handle

    def empty(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> BackendArray:
        """See `Device.empty`; CuPy's pool gives out multiples of 512 bytes."""
        return self._arrays.empty(shape, dtype, purpose)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """See `Device.pinned`."""
        count = math.prod(shape)
        size = max(1, count * np.dtype(dtype).itemsize)
        if size > _MOST_PINNED:
            return np.empty(shape, dtype)
        with self.failures("locking memory of the host"):
            memory = self._cupy.cuda.alloc_pinned_memory(size)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def address(self, array: Any) -> int:
        """See `Device.address`."""
        if not array.flags.c_contiguous:
            raise ValueError("only C-contiguous arrays have one address")
        pointer: int = array.data.ptr
        return pointer

    def adopt(
        self, address: int, shape: Sequence[int], dtype: DTypeLike, owner: object
    ) -> BackendArray:
        """An array over memory of the GPU that `owner` has, which lives as long as the array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return self.empty(shape, dtype, "nothing")
        cupy = self._cupy
        memory = cupy.cuda.UnownedMemory(address, size, owner, self._index)
        array: BackendArray = cupy.ndarray(
            tuple(shape), dtype, memptr=cupy.cuda.MemoryPointer(memory, 0)
        )
        return array

    def upload(self, source: Array, target: BackendArray) -> None:
        """See `Device.upload`. Memory that is not page-locked may be written to at once."""
        self._copy(self.address(target), source.ctypes.data, source.nbytes, _TO_DEVICE)

    def download(self, source: BackendArray, target: Array) -> None:
        """See `Device.download`."""
        self._copy(target.ctypes.data, self.address(source), target.nbytes, _TO_HOST)

    def copy(self, source: BackendArray, target: BackendArray) -> None:
        """See `Device.copy`."""
        self._copy(self.address(target), self.address(source), source.nbytes, _WITHIN)

    def rank(self, logits: Any, count: int) -> tuple[BackendArray, BackendArray]:
        """See `rank_on`."""
        with self.failures("ranking tokens"):
            return rank_on(self._cupy, logits, count)

    def capture(self, work: Callable[[], None]) -> "CapturedWork":
        """See `Device.capture`."""
        with self.failures("capturing a CUDA graph"):
            self._stream.begin_capture()
            try:
                work()
            except BaseException:
                with contextlib.suppress(self._cupy.cuda.runtime.CUDARuntimeError):
                    self._stream.end_capture()  # else the stream would go on recording
                raise
            return CapturedWork(self._stream.end_capture(), self)

    def failures(self, doing: str) -> contextlib.AbstractContextManager[object]:
        """See `Device.failures`."""
        return self._arrays.failures(doing)

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        with self.failures("the GPU's work"):
            self._stream.synchronize()

    def free_memory(self) -> int:
        """See `Device.free_memory`."""
        with self.failures("asking for the GPU's memory"):
            free, _ = self._cupy.cuda.Device(self._index).mem_info
        return int(free)

    def trim(self) -> None:
        """See `Device.trim`."""
        with self._arrays.ordered():
            self._cupy.get_default_memory_pool().free_all_blocks(stream=self._stream)

    def launch(self, graph: Any) -> None:
        """Put a graph of CuPy on the stream."""
        with self.failures("launching a CUDA graph"):
            graph.launch(self._stream)

    def close(self) -> None:
        """See `Device.close`."""
        self.synchronize()
        self.trim()
        self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        if size:
            with self.failures("copying to or from the GPU"):
                runtime = self._cupy.cuda.runtime
                runtime.memcpyAsync(target, source, size, kind, self._stream.ptr)


class CapturedWork:
    """`DeviceGraph` of CuPy."""

    def __init__(self, graph: Any, device: CudaDevice) -> None:
        self._graph = graph
        self._device = device

    def launch(self) -> None:
        """See `DeviceGraph.launch`."""
        self._device.launch(self._graph)


def megabytes(count: int) -> str:
    """A number of bytes of a GPU's memory, for people."""
    return f"{count / 1e6:,.1f} MB"
