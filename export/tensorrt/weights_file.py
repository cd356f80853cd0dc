"""The weights file of lowered graphs: every tensor once, written as a stream."""

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from drl.export.weights import ALIGNMENT, WEIGHTS_FILE

SMALLEST = 256
"""Bytes from which on a tensor goes to the file; smaller ones stay in the graph."""


def externalise(models: Iterable[ir.Model], folder: Path) -> None:
    """Write the weights of all models to `weights.bin` in `folder`, and refer them to it.

    Tensors of one name and type are the same tensor: graphs of one bundle share a weights file.
    One tensor is in memory at a time.

    Args:
        models: Their initializers may be converted when they are read.
        folder: Where the file goes, and the graphs are to be.

    Raises:
        OverflowError: A weight does not fit its type.
        OSError: The file cannot be written.
    """
    places: dict[tuple[str | None, ir.DataType], ir.ExternalTensor] = {}
    with (folder / WEIGHTS_FILE).open("wb") as file:
        for model in models:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None
                if tensor.nbytes < SMALLEST:
                    value.const_value = ir.Tensor(
                        tensor.numpy(), dtype=tensor.dtype, name=value.name
                    )
                    continue
                key = tensor.name, tensor.dtype
                if key not in places:
                    places[key] = _append(file, tensor, folder)
                known = places[key]
                value.const_value = ir.ExternalTensor(
                    known.location,
                    known.offset,
                    known.length,
                    known.dtype,
                    shape=known.shape,
                    name=value.name or "",
                    base_dir=folder,
                )


def _append(file, tensor: ir.TensorProtocol, folder: Path) -> ir.ExternalTensor:  # type: ignore[no-untyped-def]
    file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
    offset, content = file.tell(), tensor.tobytes()
    file.write(content)
    return ir.ExternalTensor(
        WEIGHTS_FILE,
        offset,
        len(content),
        tensor.dtype,
        shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
        name=tensor.name or "",
        base_dir=folder,
    )
