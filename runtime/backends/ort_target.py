"""Where ONNX Runtime runs graphs, and how memory there is bound to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from drl.runtime.arrays import Array, BackendArray
from drl.runtime.backends.device import Device
from drl.runtime.backends.ort_session import run_session

_DTYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


class OrtDevice(Device, Protocol):
    """A device whose memory ONNX Runtime can bind."""

    @property
    def index(self) -> int:
        """Its number."""

    def adopt(
        self, address: int, shape: Sequence[int], dtype: DTypeLike, owner: object
    ) -> BackendArray:
        """An array over memory that `owner` has, which lives as long as the array."""


@dataclass(frozen=True)
class OrtTarget:
    """Where graphs run.

    Attributes:
        provider: The execution provider.
        options: The provider's options.
        kind: What bindings call its memory, such as "cuda".
        device: Memory and stream.
    """

    provider: str
    options: Mapping[str, str]
    kind: str
    device: OrtDevice

    def bind_input(self, handle: Any, name: str, array: BackendArray) -> None:
        """Let a graph read an array of the device."""
        handle.bind_input(name, *self._place(array))

    def bind_output(self, handle: Any, name: str, array: BackendArray) -> None:
        """Let a graph write to an array of the device."""
        handle.bind_output(name, *self._place(array))

    def _place(self, array: BackendArray) -> tuple[Any, ...]:
        """Where an array is and what it holds, as bindings take it."""
        address = self.device.address(array)
        return self.kind, self.device.index, array.dtype.type, array.shape, address

    def run(self, graph: str, session: Any, handle: Any) -> None:
        """Run a graph on what is bound. Raises `BackendError`."""
        run_session(graph, self.device.name, session.run_with_iobinding, handle)

    def run_freely(
        self,
        graph: str,
        session: Any,
        feeds: Mapping[str, BackendArray],
        choice: Mapping[str, Array],
        wanted: Sequence[str],
    ) -> dict[str, BackendArray]:
        """Run a graph whose results have sizes that only it knows, in memory of the session.

        Args:
            graph: Its name.
            session: Of the graph.
            feeds: Inputs on the device.
            choice: Inputs on the host, which decides with them.
            wanted: Names of outputs.

        Returns:
            The outputs by name.

        Raises:
            BackendError: It cannot be run.
        """
        handle = session.io_binding()
        for name, array in feeds.items():
            self.bind_input(handle, name, array)
        for name, value in choice.items():
            bind_host_input(handle, name, value)
        for name in wanted:
            handle.bind_output(name, self.kind, self.device.index)
        self.run(graph, session, handle)
        results = zip(wanted, handle.get_outputs(), strict=True)
        return {name: self._adopt(value) for name, value in results}

    def _adopt(self, value: Any) -> BackendArray:
        dtype = _DTYPES[value.data_type()]
        return self.device.adopt(value.data_ptr(), value.shape(), dtype, value)


def bind_host_input(handle: Any, name: str, array: Array) -> None:
    """Let a graph read an array of the host, which must stay alive."""
    handle.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
