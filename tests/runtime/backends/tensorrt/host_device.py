"""A `Device` in the host's memory that is as strict as a GPU, and says what a GPU would not.

Work that is put on the stream waits there until somebody waits for it, so what is read too early is
old and what is overwritten too early is wrong. Copies and engines go by addresses: each must lie in
memory that is still allocated, and a graph that was captured runs at the addresses of its capture.
Fresh memory holds no zeros.
"""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from drl.runtime.arrays import Array
from drl.runtime.backends.ranking import rank_on
from drl.runtime.errors import BackendError

ALIGNMENT = 512
Work = Callable[[], None]


class Memory:
    """Blocks of one kind of memory by address, as long as an array over them lives."""

    def __init__(self) -> None:
        self.blocks: dict[int, int] = {}
        self.allocated = 0

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = np.full(size + ALIGNMENT, 0xFF, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        address = raw.ctypes.data + start
        self.blocks[address] = size
        self.allocated += 1
        weakref.finalize(raw, self.blocks.pop, address)
        return raw[start : start + size].view(dtype).reshape(tuple(shape))

    def check(self, address: int, size: int, what: str) -> None:
        # Of a copy: the garbage collector may free a block between two of them.
        blocks = self.blocks.copy().items()
        inside = any(a <= address and address + size <= a + s for a, s in blocks)
        assert inside or not size, f"{what}: {size} bytes at {address:#x} are not allocated"

    def view(self, address: int, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """An array over what lies at an address."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        content = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(content, dtype).reshape(tuple(shape))


class HostArrays:
    """`ArrayLibrary` in a device's memory."""

    def __init__(self, device: "HostDevice") -> None:
        self._device = device

    @contextlib.contextmanager
    def ordered(self) -> Iterator[None]:
        self._device.flush()
        self._device.depth += 1
        try:
            yield
        finally:
            self._device.depth -= 1

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> Array:
        return self.full(shape, 0, dtype, purpose)

    def full(self, shape: Sequence[int], value: float, dtype: DTypeLike, purpose: str) -> Array:
        array = self._device.empty(shape, dtype, purpose)
        self._device.flush()
        array[...] = value
        return array

    def gather(self, array: Any, rows: list[int]) -> Array:
        result = self._device.empty((len(rows), *array.shape[1:]), array.dtype, "rows")
        self._device.flush()
        result[...] = array[rows]
        return result

    def from_host(self, array: Array, purpose: str) -> Array:
        result = self._device.empty(array.shape, array.dtype, purpose)
        self._device.flush()
        result[...] = array
        return result

    def to_host(self, array: Any) -> Array:
        self._device.flush()
        host: Array = np.array(array)
        return host


class HostGraph:
    """`DeviceGraph` of what was recorded."""

    def __init__(self, device: "HostDevice", work: list[Work]) -> None:
        self._device = device
        self._work = work

    def launch(self) -> None:
        self._device.launches += 1
        for item in self._work:
            self._device.put(item)


class HostDevice:
    """See the module.

    Attributes:
        memory, locked: The device's memory, and page-locked memory of the host.
        launches, captures: How many graphs were launched and captured.
        capacity: Bytes that the device has.
    """

    name = "a host that is strict"
    compute_capability = "8.9"
    stream = 0x5EED

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.memory, self.locked = Memory(), Memory()
        self.arrays = HostArrays(self)
        self.capacity = capacity
        self.depth = self.launches = self.captures = 0
        self.closed = False
        self.trims = 0
        self._queue: list[Work] = []
        self._recording: list[Work] | None = None

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def put(self, work: Work) -> None:
        """Put work on the stream, or into the graph that is being captured."""
        assert self.depth, "something is put on the stream outside of `ordered`"
        assert not self.closed
        (self._queue if self._recording is None else self._recording).append(work)

    def flush(self) -> None:
        assert self._recording is None, "a capture must not wait for anything"
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def empty(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> Array:
        assert self.depth, f"{purpose} is allocated outside of `ordered`"
        assert self._recording is None, f"{purpose} is allocated in a capture"
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if sum(self.memory.blocks.values()) + size > self.capacity:
            raise BackendError(f"the device has no {size} bytes left for {purpose}")
        return self.memory.empty(shape, dtype)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return self.locked.empty(shape, dtype)

    def address(self, array: Any) -> int:
        assert array.flags.c_contiguous
        address: int = array.ctypes.data
        return address

    def upload(self, source: Array, target: Any) -> None:
        self._copy(source, self.locked, target, self.memory)

    def download(self, source: Any, target: Array) -> None:
        self._copy(source, self.memory, target, self.locked)

    def copy(self, source: Any, target: Any) -> None:
        self._copy(source, self.memory, target, self.memory)

    def rank(self, logits: Any, count: int) -> tuple[Array, Array]:
        self.flush()
        values, ids = rank_on(np, logits, count)
        return self.arrays.from_host(values, "ranks"), self.arrays.from_host(ids, "ranks")

    def capture(self, work: Work) -> HostGraph:
        assert not self._queue, "a capture begins while work is under way"
        self.captures += 1
        self._recording = []
        try:
            work()
            return HostGraph(self, self._recording)
        finally:
            self._recording = None

    @contextlib.contextmanager
    def failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise BackendError(f"{doing} failed: {error}") from error

    def synchronize(self) -> None:
        self.flush()

    def free_memory(self) -> int:
        return self.capacity - sum(self.memory.blocks.values())

    def trim(self) -> None:
        assert self.depth
        self.trims += 1

    def close(self) -> None:
        self.flush()
        self.closed = True

    def _copy(self, source: Array, known: Memory, target: Array, knows: Memory) -> None:
        assert source.nbytes == target.nbytes
        assert source.flags.c_contiguous
        assert target.flags.c_contiguous
        begin, end, size = source.ctypes.data, target.ctypes.data, source.nbytes

        def work() -> None:
            known.check(begin, size, "the source of a copy")
            knows.check(end, size, "the target of a copy")
            ctypes.memmove(end, begin, size)

        self.put(work)
