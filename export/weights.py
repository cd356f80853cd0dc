"""The weights file: which tensors the graphs need, where they lie, and what they are made of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from drl.export.checkpoint import Checkpoint

WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 64
"""Bytes; the size of a cache line and of the widest vector register."""

Maker = Callable[[Checkpoint], Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the weights file.

    Attributes:
        value: The initializer that stands for it: name, dtype, shape, offset and length.
        make: Computes it from a checkpoint.
    """

    value: ir.ExternalTensor
    make: Maker


class WeightPlan:
    """Lays out the weights file while graphs are emitted; all graphs of a bundle share one plan.

    A tensor asked for twice under one name is stored once. Only names and shapes are known here:
    values are read from the checkpoint when the file is written, one tensor at a time.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, StoredTensor] = {}
        self._size = 0

    def add(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Maker
    ) -> ir.ExternalTensor:
        """Return the tensor called `name`, giving it a place in the file if it has none yet.

        Raises:
            ValueError: The name stands for a tensor of another dtype or shape already.
        """
        if name not in self._tensors:
            length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            value = ir.ExternalTensor(
                WEIGHTS_FILE, self._size, int(length), dtype, shape=ir.Shape(shape), name=name
            )
            self._tensors[name] = StoredTensor(value, make)
            self._size += -(-int(length) // ALIGNMENT) * ALIGNMENT
        value = self._tensors[name].value
        if value.dtype != dtype or tuple(value.shape) != shape:
            raise ValueError(f"tensor `{name}` is planned as {value.shape}, now asked as {shape}")
        return value

    def tensors(self) -> Iterator[StoredTensor]:
        """Yield every tensor of the file, in its order."""
        yield from self._tensors.values()

    @property
    def size(self) -> int:
        """Bytes of the weights file."""
        return self._size

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write the weights file into `folder`, holding one tensor in memory at a time.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
            OSError: The file cannot be written.
        """
        with (folder / WEIGHTS_FILE).open("wb") as file:
            for stored in self._tensors.values():
                file.seek(stored.value.offset or 0)
                file.write(_to_bytes(stored, checkpoint))
            file.truncate(self._size)


def _to_bytes(stored: StoredTensor, checkpoint: Checkpoint) -> bytes:
    array = stored.make(checkpoint).detach().contiguous().numpy()
    wanted = stored.value
    if array.shape != tuple(wanted.shape) or array.dtype != wanted.dtype.numpy():
        raise ValueError(f"tensor `{wanted.name}` came as {array.dtype}{array.shape}")
    return array.tobytes()


def stored_as_is(name: str) -> Maker:
    """Make a tensor that is the checkpoint's parameter `name`."""
    return lambda checkpoint: checkpoint.tensor(name)


def transposed(name: str) -> Maker:
    """Make a tensor that is the checkpoint's matrix `name`, turned from [out, in] to [in, out]."""
    return lambda checkpoint: checkpoint.tensor(name).T


def reshaped(name: str, shape: tuple[int, ...]) -> Maker:
    """Make a tensor that is the checkpoint's parameter `name` in another shape."""
    return lambda checkpoint: checkpoint.tensor(name).reshape(shape)


def joined(names: Sequence[str]) -> Maker:
    """Make a matrix of the checkpoint's matrices `names`, one above the other."""
    return lambda checkpoint: torch.cat([checkpoint.tensor(name) for name in names])


def stacked(names: Sequence[str]) -> Maker:
    """Make a stack of the checkpoint's parameters `names`, all of one shape."""
    return lambda checkpoint: torch.stack([checkpoint.tensor(name) for name in names])


def each_transposed(name: str) -> Maker:
    """Make the checkpoint's stack `name` with every matrix turned from [in, out] to [out, in]."""
    return lambda checkpoint: checkpoint.tensor(name).transpose(1, 2)


def constant(value: Tensor) -> Maker:
    """Make a tensor that depends on the configuration only."""
    return lambda _: value
