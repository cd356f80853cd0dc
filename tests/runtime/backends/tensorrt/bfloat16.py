"""Graphs in bfloat16 where nothing computes in it: in float32, between the same bits."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from drl.runtime.arrays import Array, Float32


def compute_in_float32(path: Path) -> list[str]:
    """Let a graph compute in float32 what it computes in bfloat16.

    Args:
        path: Of the graph, which is written anew.

    Returns:
        The inputs and outputs that were bfloat16.
    """
    model = onnx.load(path)
    bits = [
        item.name
        for item in (*model.graph.input, *model.graph.output)
        if item.type.tensor_type.elem_type == TensorProto.BFLOAT16
    ]
    _widen(model.graph)
    onnx.save(model, path)
    return bits


def to_float32(bits: Array) -> Float32:
    """The numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(values: Float32) -> Array:
    """The bits of the bfloat16 numbers that are nearest, and even among two of them."""
    wide = np.ascontiguousarray(values).view(np.uint32)
    rounded = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16
    quiet_nan = np.uint32(0x7FC0)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def _widen(graph: onnx.GraphProto) -> None:
    for index, weight in enumerate(graph.initializer):
        graph.initializer[index].CopyFrom(_widened(weight))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(_widened(attribute.t))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.BFLOAT16:
        return tensor
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return helper.make_tensor(
        tensor.name, TensorProto.FLOAT, tensor.dims, values.tobytes(), raw=True
    )
