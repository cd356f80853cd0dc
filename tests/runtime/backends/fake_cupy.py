"""CuPy as far as the runtime uses it, in the host's memory, and stricter than the real one.

Where CuPy would copy behind one's back, wait behind one's back, or take what only NumPy takes,
this raises. Work on another stream than the device's raises too, and copies to the host arrive
when the stream is waited for, not before.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

TO_DEVICE, TO_HOST, WITHIN = 1, 2, 3


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818 - CuPy's name
    pass


class FakeStream:
    """A stream whose copies to the host are done when it is waited for."""

    def __init__(self, cupy: "FakeCupy") -> None:
        self.ptr = 4096
        self._cupy = cupy
        self.later: list[Callable[[], None]] = []
        self.recorded: list[Callable[[], None]] | None = None
        self.waits = 0

    def __enter__(self) -> "FakeStream":
        self._cupy.entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._cupy.entered.pop() is self

    def begin_capture(self) -> None:
        assert self.recorded is None
        self.recorded = []

    def end_capture(self) -> "FakeGraph":
        assert self.recorded is not None
        graph, self.recorded = FakeGraph(self.recorded), None
        return graph

    def do(self, work: Callable[[], None]) -> None:
        """Do something in its turn, or record it."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def synchronize(self) -> None:
        assert self.recorded is None, "a stream must not be waited for while it records"
        self.waits += 1
        for work in self.later:
            work()
        self.later.clear()


class FakeGraph:
    """What was recorded of a stream."""

    def __init__(self, recorded: list[Callable[[], None]]) -> None:
        self._recorded = recorded

    def launch(self, stream: FakeStream) -> None:
        for work in self._recorded:
            stream.do(work)


class FakeArray:
    """An array of the device. NumPy must not read it, nor may it meet a NumPy array."""

    __array_ufunc__ = None

    def __init__(self, cupy: "FakeCupy", values: np.ndarray, owner: object = None) -> None:
        self._cupy = cupy
        self._values = values
        self._owner = owner

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __bool__(self) -> bool:
        raise TypeError("reading a number of the device would wait for it")

    __float__ = __int__ = __index__ = tolist = item = __bool__

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("reading an array of the device item by item")

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "nbytes", "flags", "ndim", "size"):
            return getattr(self._values, name)
        raise AttributeError(name)

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._values.ctypes.data)

    def __getitem__(self, place: Any) -> "FakeArray":
        _check_place(place)
        return FakeArray(self._cupy, self._values[place], self)

    def __setitem__(self, place: Any, value: Any) -> None:
        _check_place(place)
        self._cupy.check_stream()
        self._values[place] = self._cupy.unwrap(value)

    def get(self) -> np.ndarray:
        self._cupy.check_stream()
        self._cupy.entered[-1].synchronize()
        return self._values.copy()

    def reshape(self, *shape: Any) -> "FakeArray":
        return FakeArray(self._cupy, self._values.reshape(*shape), self)

    def view(self, dtype: Any) -> "FakeArray":
        assert self._values.flags.c_contiguous
        return FakeArray(self._cupy, self._values.view(dtype), self)

    def astype(self, dtype: Any) -> "FakeArray":
        return self._new(self._values.astype(dtype))

    def max(self, axis: int) -> "FakeArray":
        return self._new(self._values.max(axis=axis))

    def __invert__(self) -> "FakeArray":
        return self._new(~self._values)

    def _new(self, values: np.ndarray) -> "FakeArray":
        self._cupy.check_stream()
        return FakeArray(self._cupy, values)


def _operator(name: str) -> Callable[[FakeArray, Any], FakeArray]:
    def apply(self: FakeArray, other: Any) -> FakeArray:
        return self._new(getattr(self._values, name)(self._cupy.unwrap(other)))

    return apply


for _name in ("add", "and", "or", "xor", "lshift", "rshift", "ge"):
    setattr(FakeArray, f"__{_name}__", _operator(f"__{_name}__"))


def _check_place(place: Any) -> None:
    for part in place if isinstance(place, tuple) else (place,):
        if not isinstance(part, int | slice | type(None) | type(Ellipsis)):
            raise TypeError(f"{part!r} would be copied to the device behind one's back")


class FakeCupy:
    """The module.

    Args:
        limit: Bytes that an array may have.
        fault: Raised by whatever starts the device.
    """

    __name__ = "cupy"
    __version__ = "14.0"

    def __init__(self, limit: int = 1 << 40, fault: str = "") -> None:
        self.limit = limit
        self.entered: list[FakeStream] = []
        self.streams: list[FakeStream] = []
        self.fault = fault
        self.freed: list[FakeStream] = []
        self.pinned: list[int] = []  # sizes
        self.freed_pinned = False
        self.cuda = SimpleNamespace(
            Device=self._device,
            Stream=self._stream,
            UnownedMemory=lambda address, size, owner, index: (address, size, owner),
            MemoryPointer=lambda memory, offset: memory,
            alloc_pinned_memory=self._pinned,
            compiler=SimpleNamespace(CompileException=CompileException),
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                memcpyAsync=self._copy,
                getDeviceProperties=lambda index: {"name": b"Fake GPU"},
            ),
        )

    def check_stream(self) -> None:
        assert self.entered, "put on the default stream, which nothing orders with the device's"

    def unwrap(self, value: Any) -> Any:
        if isinstance(value, FakeArray):
            return value._values
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return value

    def wrap(self, values: np.ndarray) -> FakeArray:
        self.check_stream()
        if values.nbytes > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {values.nbytes} bytes")
        return FakeArray(self, values)

    def ndarray(self, shape: tuple[int, ...], dtype: Any, memptr: Any) -> FakeArray:
        address, size, owner = memptr
        assert size == math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_char * size).from_address(address)
        return FakeArray(self, np.frombuffer(memory, dtype).reshape(shape), owner)

    def zeros(self, shape: Any, dtype: Any) -> FakeArray:
        return self._made(np.zeros, shape, dtype)

    def empty(self, shape: Any, dtype: Any) -> FakeArray:
        return self._made(np.empty, shape, dtype)

    def full(self, shape: Any, value: float, dtype: Any) -> FakeArray:
        return self.wrap(np.full(shape, value, dtype))

    def asarray(self, values: np.ndarray) -> FakeArray:
        assert type(values) is np.ndarray
        return self.wrap(values.copy())

    def take(self, array: FakeArray, places: FakeArray, axis: int) -> FakeArray:
        assert isinstance(places, FakeArray)
        return self.wrap(np.take(array._values, places._values, axis=axis))

    def arange(self, size: int, dtype: Any) -> FakeArray:
        return self.wrap(np.arange(size, dtype=dtype))

    def isnan(self, array: FakeArray) -> FakeArray:
        return self.wrap(np.isnan(array._values))

    def where(self, condition: FakeArray, left: Any, right: Any) -> FakeArray:
        return self.wrap(np.where(condition._values, self.unwrap(left), self.unwrap(right)))

    def sort(self, array: FakeArray, axis: int) -> FakeArray:
        return self.wrap(np.sort(array._values, axis=axis))

    def argsort(self, array: FakeArray, axis: int) -> FakeArray:
        return self.wrap(np.argsort(array._values, axis=axis))

    def take_along_axis(self, array: FakeArray, places: FakeArray, axis: int) -> FakeArray:
        return self.wrap(np.take_along_axis(array._values, places._values, axis))

    def get_default_memory_pool(self) -> SimpleNamespace:
        return SimpleNamespace(free_all_blocks=lambda stream: self.freed.append(stream))

    def get_default_pinned_memory_pool(self) -> SimpleNamespace:
        return SimpleNamespace(free_all_blocks=lambda: setattr(self, "freed_pinned", True))

    def _pinned(self, size: int) -> bytearray:
        self.pinned.append(size)
        return bytearray(size)

    def _made(self, make: Any, shape: Any, dtype: Any) -> FakeArray:
        if math.prod(shape) * np.dtype(dtype).itemsize > self.limit:
            raise OutOfMemoryError("Out of memory allocating")
        return self.wrap(make(shape, dtype))

    def _device(self, index: int) -> Any:
        if self.fault:
            raise CUDARuntimeError(self.fault)
        device = contextlib.nullcontext()
        device.compute_capability = "89"  # type: ignore[attr-defined]
        device.mem_info = (5 << 20, 80 << 20)  # type: ignore[attr-defined]
        return device

    def _stream(self, non_blocking: bool) -> FakeStream:
        assert non_blocking
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def _copy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        (own,) = self.streams
        assert stream == own.ptr

        def work() -> None:
            if kind == TO_HOST:
                now = ctypes.string_at(source, size)  # what is there when its turn comes
                own.later.append(lambda: ctypes.memmove(target, now, size) and None)
            else:
                ctypes.memmove(target, source, size)

        own.do(work)
