"""QuantizedProjections: queries, keys and values of an attention layer, from packed weights."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops import quantized_linear
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.projections import PROJECTED, PROJECTED_COLUMNS, trace_split
from drl.plugins.ops.quantized_product import LAYOUT_ATTRIBUTE, weight_arguments
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]


def reference(
    x: Float32,
    weight: NDArray[np.uint8],
    scale: Float32,
    multiplier: NDArray[np.uint8] | None = None,
    norm: Float32 | None = None,
    bias: Float32 | None = None,
    *,
    query_columns: int,
    kv_columns: int,
    epsilon: float,
    layout: int,
) -> tuple[Float32, Float32, Float32]:
    """x̂ · Wᵀ + bias in three parts; W is W_q, W_k and W_v, one above the other.

    Args:
        x: `[B, T, K]`.
        weight: Packed values of one matrix `[N, K]`, N = query_columns + 2 · kv_columns.
        scale: `[1, ⌈N/32⌉·32]`.
        multiplier: Of weights in blocks.
        norm: `[K]`, the weight of the norm; without it there is no norm.
        bias: `[N]`.
        query_columns: Columns of the queries.
        kv_columns: Columns of the keys, and of the values.
        epsilon: Of the norm.
        layout: The layout of the packed weights.

    Returns:
        Queries `[B, T, query_columns]`, keys and values `[B, T, kv_columns]`.
    """
    y = quantized_linear.reference(
        x,
        weight,
        scale,
        multiplier,
        norm,
        bias,
        columns=query_columns + 2 * kv_columns,
        activation="none",
        epsilon=epsilon,
        layout=layout,
    )
    q, k, v = np.split(y, [query_columns, query_columns + kv_columns], axis=-1)
    return q, k, v


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    multiplier: ir.Value | None = None,
    norm: ir.Value | None = None,
    bias: ir.Value | None = None,
    *,
    query_columns: ir.Value,
    kv_columns: ir.Value,
    epsilon: ir.Value,
    layout: ir.Value,
) -> Any:
    """Trace one linear layer and split its columns."""
    keys_end = op.Add(query_columns, kv_columns)
    y = quantized_linear.body(
        op,
        x,
        weight,
        scale,
        multiplier,
        norm,
        bias,
        columns=op.Add(keys_end, kv_columns),
        activation="none",
        epsilon=epsilon,
        layout=layout,
    )
    return trace_split(op, y, query_columns, kv_columns)


QUANTIZED_PROJECTIONS = Operator(
    name="QuantizedProjections",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        *weight_arguments("", ("1", "N", "K")),
        Argument("norm", ir.DataType.FLOAT, ("K",), optional=True),
        Argument("bias", ir.DataType.FLOAT, ("q+2*n",), optional=True),
    ),
    outputs=PROJECTED,
    attributes=(*PROJECTED_COLUMNS, Attribute("epsilon", float), LAYOUT_ATTRIBUTE),
    reference=reference,
    body=body,
    overloaded=True,
)
