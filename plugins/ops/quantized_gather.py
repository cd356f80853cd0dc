"""QuantizedGather: embeddings of tokens, from the packed weights of a head that shares them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.packing import BLOCK, INT8_ZERO, unpack
from drl.plugins.ops.quantized_product import LAYOUT_ATTRIBUTE, packed_weights
from drl.plugins.ops.schema import Argument, Attribute


def reference(
    tokens: NDArray[np.int64],
    weight: NDArray[np.uint8],
    scale: NDArray[np.float32],
    multiplier: NDArray[np.uint8] | None = None,
    *,
    depth: int,
    layout: int,
) -> NDArray[np.float32]:
    """Look up rows of packed weights of 8 bits.

    Args:
        tokens: `[B, T]`, from 0 on and below the columns.
        weight: Packed values of one matrix `[N, K]`.
        scale: `[1, ⌈N/32⌉·32]`.
        multiplier: Of weights in blocks.
        depth: K.
        layout: The layout of the packed weights.

    Returns:
        `[B, T, K]`.
    """
    packed = packed_weights(weight, scale, multiplier, scale.shape[1], depth)
    rows: NDArray[np.float32] = unpack(packed)[0, tokens]
    return rows


def body(
    op: onnxscript.OpBuilder,
    tokens: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    multiplier: ir.Value | None = None,
    *,
    depth: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace a gather of rows of bytes, and their scaling."""
    scales = op.Gather(op.Squeeze(scale, [0]), tokens, axis=0)
    if multiplier is None:
        values = _trace_values(op, weight, tokens, [0, 2, 1, 3])
        scaled = op.Mul(values, op.Unsqueeze(scales, [2]))
    else:
        values = _trace_values(op, weight, tokens, [0, 3, 1, 2, 4])
        by_column = op.Transpose(op.Squeeze(multiplier, [0]), perm=[0, 2, 1])
        table = op.Reshape(by_column, op.Concat([-1], op.Shape(multiplier, start=2, end=3), axis=0))
        factors = op.Cast(op.Gather(table, tokens, axis=0), to=ir.DataType.FLOAT)
        steps = op.Unsqueeze(op.Mul(factors, op.Unsqueeze(scales, [2])), [3])
        blocks = op.Reshape(values, [0, 0, -1, BLOCK])
        scaled = op.Reshape(op.Mul(blocks, steps), op.Shape(values))
    return op.Slice(scaled, [0], op.Reshape(depth, [1]), [2])


def _trace_values(
    op: onnxscript.OpBuilder, weight: ir.Value, tokens: ir.Value, perm: list[int]
) -> Any:
    """Trace the integers `[B, T, K']` of the tokens; `perm` brings columns before their depth."""
    by_row = op.Transpose(op.Squeeze(weight, [0]), perm=perm)
    padded = op.ReduceProd(op.Shape(by_row, start=2), keepdims=1)
    table = op.Reshape(by_row, op.Concat([-1], padded, axis=0))
    rows = op.Gather(table, tokens, axis=0)
    return op.Sub(op.Cast(rows, to=ir.DataType.FLOAT), float(INT8_ZERO))


QUANTIZED_GATHER = Operator(
    name="QuantizedGather",
    inputs=(
        Argument("tokens", ir.DataType.INT64, ("B", "T")),
        Argument(
            "weight",
            ir.DataType.UINT8,
            ("1", "P", "K/4", "32", "4"),
            other_dims={"multiplier": ("1", "P", "K/32", "8", "32", "4")},
        ),
        Argument("scale", ir.DataType.FLOAT, ("1", "P*32")),
        Argument("multiplier", ir.DataType.UINT8, ("1", "P", "K/32", "32"), optional=True),
    ),
    outputs=(Argument("rows", ir.DataType.FLOAT, ("B", "T", "K")),),
    attributes=(Attribute("depth", int, dimension="K"), LAYOUT_ATTRIBUTE),
    reference=reference,
    body=body,
    overloaded=True,
)
