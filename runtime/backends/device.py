"""What a backend asks of a device: memory, one stream, and graphs of what was put on it.

Everything is put on one stream and happens there in order: copies, graphs of a model, and what the
array library does inside `ordered`. So nothing has to wait for anything but the host, which waits
for results. The stream is the device's own, and never the default stream, on which libraries would
wait for everything else; what an application does on its streams neither waits nor is waited for.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from numpy.typing import DTypeLike

from drl.runtime.arrays import Array, BackendArray
from drl.runtime.backends.memory import ArrayLibrary


class DeviceGraph(Protocol):
    """Work that was captured: it runs again, at the same addresses."""

    def launch(self) -> None:
        """Put the work on the stream."""


class Device(Protocol):
    """A GPU, or what stands for one. Every method may be called from any thread, one at a time.

    All but `synchronize`, `pinned` and `address` are called inside `arrays.ordered()`. Whatever
    fails raises `BackendError`.
    """

    @property
    def name(self) -> str:
        """The device, for people."""

    @property
    def compute_capability(self) -> str:
        """As `8.9`."""

    @property
    def arrays(self) -> ArrayLibrary:
        """Allocates what the caller of the backend keeps on the device."""

    @property
    def stream(self) -> int:
        """The handle of the stream, `cudaStream_t` as a number."""

    def empty(self, shape: Sequence[int], dtype: DTypeLike, purpose: str) -> BackendArray:
        """A new C-contiguous array of whatever numbers; its address is a multiple of 512."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """A NumPy array of page-locked memory, which copies can go on with while the host works.

        One of many megabytes is of ordinary memory: the host then waits for its copies.
        """

    def address(self, array: BackendArray) -> int:
        """Where a C-contiguous array begins on the device."""

    def upload(self, source: Array, target: BackendArray) -> None:
        """Copy page-locked memory to as many bytes of the device, later."""

    def download(self, source: BackendArray, target: Array) -> None:
        """Copy the device's memory to as many bytes of page-locked memory, later."""

    def copy(self, source: BackendArray, target: BackendArray) -> None:
        """Copy between arrays of the device, later."""

    def rank(self, logits: BackendArray, count: int) -> tuple[BackendArray, BackendArray]:
        """The likeliest tokens, as `Ranking` orders them: values and ids of `[..., V]` logits."""

    def capture(self, work: Callable[[], None]) -> DeviceGraph:
        """Record what `work` puts on the stream instead of running it."""

    def failures(self, doing: str) -> AbstractContextManager[object]:
        """Turns what the device's library raises into a `BackendError`: "{doing} failed: …"."""

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""

    def free_memory(self) -> int:
        """Bytes of the device that nobody uses."""

    def trim(self) -> None:
        """Give back the memory that is kept for reuse."""

    def close(self) -> None:
        """Wait for the stream, and give back all memory that is kept for reuse."""
