"""QuantizedGather: embeddings of tokens, from the packed weights of a head that shares them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.packing import INT8_ZERO, unpack
from drl.plugins.ops.quantized_product import LAYOUT_ATTRIBUTE, packed_weights
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    tokens: NDArray[np.int64],
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    *,
    depth: int,
    layout: int,
) -> NDArray[np.float32]:
    """Look up rows of packed int8 weights.

    Args:
        tokens: `[B, T]`, from 0 on and below the columns.
        weight: Packed values of one matrix `[N, K]`.
        scale: `[1, ⌈N/32⌉·32]`.
        depth: K.
        layout: The layout of the packed weights.

    Returns:
        `[B, T, K]`.
    """
    packed = packed_weights(weight, scale, None, scale.shape[1], depth)
    rows: NDArray[np.float32] = unpack(packed)[0, tokens]
    return rows


def body(
    op: onnxscript.OpBuilder,
    tokens: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    *,
    depth: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace a gather of rows of bytes, and their scaling."""
    by_row = op.Transpose(op.Squeeze(weight, [0]), perm=[0, 2, 1, 3])
    padded_depth = op.Mul(op.Shape(weight, start=2, end=3), op.Shape(weight, start=4))
    table = op.Reshape(by_row, op.Concat([-1], padded_depth, axis=0))
    rows = op.Slice(op.Gather(table, tokens, axis=0), [0], op.Reshape(depth, [1]), [2])
    values = op.Sub(op.Cast(rows, to=ir.DataType.FLOAT), float(INT8_ZERO))
    scales = op.Gather(op.Squeeze(scale, [0]), tokens, axis=0)
    return op.Mul(values, op.Unsqueeze(scales, [2]))


QUANTIZED_GATHER = Operator(
    name="QuantizedGather",
    inputs=(
        Argument("tokens", ir.DataType.INT64, ("B", "T")),
        Argument("weight", ir.DataType.UINT8, ("1", "P", "K/4", "32", "4")),
        Argument("scale", ir.DataType.FLOAT, ("1", "P*32")),
    ),
    outputs=(Argument("rows", ir.DataType.FLOAT, ("B", "T", "K")),),
    attributes=(Attribute("depth", int, dimension="K"), LAYOUT_ATTRIBUTE),
    reference=reference,
    body=body,
    overloaded=True,
)
