"""The memory that steps work on: which library allocates it, and what a backend asks of its shape.

`protocol` says who owns which array and how long it stays where it is.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from drl.runtime.arrays import Array, BackendArray
from drl.runtime.backends.limits import NO_LIMITS, BackendLimits


class ArrayLibrary(Protocol):
    """What the runtime does with arrays that steps work on, beside cutting and assigning.

    Allocating, cutting, assigning and gathering are enqueued like all work of the backend: in the
    order of its calls, from whatever thread, as long as they happen inside `ordered`.
    """

    def ordered(self) -> AbstractContextManager[object]:
        """Enter the backend's device and stream, for this thread. May be entered again inside."""

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> BackendArray:
        """A new C-contiguous array of zeros.

        Args:
            shape: Its dimensions.
            dtype: Its elements' type.
            purpose: What it is for, as errors say it: "the KV cache of 32 rows".

        Raises:
            BackendError: The device has no memory for it.
        """

    def full(
        self, shape: Sequence[int], value: float, dtype: DTypeLike, purpose: str
    ) -> BackendArray:
        """A new C-contiguous array that holds one number. Arguments and errors as for `zeros`."""

    def gather(self, array: BackendArray, rows: list[int]) -> BackendArray:
        """A new C-contiguous array of some entries of the first dimension, in the given order."""

    def from_host(self, array: Array, purpose: str) -> BackendArray:
        """The array in the library's memory: a copy, or the same where that is the host's."""

    def to_host(self, array: BackendArray) -> Array:
        """A NumPy array of the same contents, complete when the call returns."""


class HostArrays:
    """`ArrayLibrary` of NumPy."""

    _NOTHING = contextlib.nullcontext()

    def ordered(self) -> AbstractContextManager[object]:
        """See `ArrayLibrary.ordered`; there is nothing to enter."""
        return self._NOTHING

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> Array:
        """See `ArrayLibrary.zeros`."""
        return np.zeros(shape, dtype)

    def full(self, shape: Sequence[int], value: float, dtype: DTypeLike, purpose: str) -> Array:
        """See `ArrayLibrary.full`."""
        return np.full(shape, value, dtype)

    def gather(self, array: BackendArray, rows: list[int]) -> Array:
        """See `ArrayLibrary.gather`."""
        return np.ascontiguousarray(array[rows])

    def from_host(self, array: Array, purpose: str) -> Array:
        """See `ArrayLibrary.from_host`: the very array."""
        return array

    def to_host(self, array: Any) -> Array:
        """See `ArrayLibrary.to_host`: the very array."""
        host: Array = array
        return host


HOST = HostArrays()


class MemoryRules(Protocol):
    """What a backend asks of the memory that its caller allocates for it."""

    @property
    def arrays(self) -> ArrayLibrary:
        """The library of encoder states, cross-attention blocks and the KV cache."""

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Type of keys and values; bfloat16 is kept as uint16."""

    @property
    def capacity(self) -> int | None:
        """Positions that every row of the cache has; None where the cache may grow as it needs."""

    @property
    def shrinks(self) -> bool:
        """Whether the cache may move to less memory while sequences run.

        On a device the smaller copy would have to fit beside the large one, and what was derived
        from the addresses would be lost.
        """

    @property
    def reads_behind(self) -> bool:
        """Whether a step reads the cache behind a row's tokens, if only to count it nothing.

        What a sequence has left there must then be overwritten before the memory is another one's.
        """

    @property
    def kept_multiple(self) -> int:
        """What the cross-attention blocks' states, K, are rounded up to a multiple of."""

    def bucket(self, slots: int, width: int) -> int:
        """How many slots a step of a token per row really runs, over `slots` slots of `width` rows.

        It is `slots` or more, never less for more slots, and the same for its own result. The cache
        has memory for as many.
        """


class HostRules:
    """`MemoryRules` of a backend on the host: NumPy's arrays, of just the shape that is needed."""

    arrays: ArrayLibrary = HOST
    capacity: int | None = None
    shrinks: bool = True
    reads_behind: bool = False
    # Sources of about the same length enter and leave without the blocks being laid out again.
    kept_multiple: int = 8
    limits: BackendLimits = NO_LIMITS

    def __init__(self, cache_dtype: DTypeLike) -> None:
        self.cache_dtype: np.dtype[Any] = np.dtype(cache_dtype)

    def bucket(self, slots: int, width: int) -> int:
        """See `MemoryRules.bucket`: what there is."""
        return slots
