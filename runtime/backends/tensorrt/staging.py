"""Small tensors that cross between host and device together, in one copy each way."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from drl.runtime.arrays import Array
from drl.runtime.backends.device import Device

ALIGNMENT = 256
"""Bytes: TensorRT takes tensors that begin at multiples of it."""
Fields = Mapping[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape and type by name."""


class Staged:
    """Tensors that lie side by side, on the device and in page-locked memory of the host.

    The host's side may be written to only while no copy of it is under way: after a
    `Device.synchronize` that came after it.

    Attributes:
        host: The host's side of every tensor.
        addresses: Where each is on the device.
    """

    def __init__(self, device: Device, fields: Fields, purpose: str) -> None:
        self._device = device
        places: dict[str, slice] = {}
        end = 0
        for name, (shape, dtype) in fields.items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            places[name] = slice(end, end + size)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        end = max(end, ALIGNMENT)
        self._memory = device.empty((end,), np.uint8, purpose)
        self._host = device.pinned((end,), np.uint8)
        start = device.address(self._memory)
        self.addresses = {name: start + place.start for name, place in places.items()}
        self.host: dict[str, Array] = {
            name: self._host[places[name]].view(dtype).reshape(shape)
            for name, (shape, dtype) in fields.items()
        }

    def upload(self) -> None:
        """Bring the host's side to the device, later."""
        self._device.upload(self._host, self._memory)

    def download(self) -> None:
        """Bring the device's side to the host, later."""
        self._device.download(self._memory, self._host)
