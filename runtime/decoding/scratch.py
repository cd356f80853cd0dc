"""Memory that is kept from step to step."""

import numpy as np

from drl.runtime.arrays import Float32


class Scratch:
    """A buffer that grows to the largest shape asked for."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.float32)

    def like(self, array: Float32) -> Float32:
        """Memory of the shape of `array`, with whatever it held before."""
        if self._buffer.size < array.size:
            self._buffer = np.empty(array.size, np.float32)
        return self._buffer[: array.size].reshape(array.shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._buffer = np.empty(0, np.float32)
