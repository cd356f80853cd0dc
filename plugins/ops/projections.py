"""Projections: queries, keys and values of an attention layer, from float weights in panels."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops import linear
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.panels import panel_argument
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]

PROJECTED = (
    Argument("q", ir.DataType.FLOAT, ("B", "T", "q")),
    Argument("k", ir.DataType.FLOAT, ("B", "T", "n")),
    Argument("v", ir.DataType.FLOAT, ("B", "T", "n")),
)
"""The outputs."""
PROJECTED_COLUMNS = (
    Attribute("query_columns", int, dimension="q"),
    Attribute("kv_columns", int, dimension="n"),
)
"""The attributes that say how the columns are shared out."""


def reference(
    x: Float32,
    weight: Float32,
    norm: Float32 | None = None,
    bias: Float32 | None = None,
    *,
    query_columns: int,
    kv_columns: int,
    epsilon: float,
) -> tuple[Float32, Float32, Float32]:
    """x̂ · Wᵀ + bias in three parts; W is W_q, W_k and W_v, one above the other.

    Args:
        x: `[B, T, K]`.
        weight: Panels of one matrix `[N, K]`, N = query_columns + 2 · kv_columns.
        norm: `[K]`, the weight of the norm; without it there is no norm.
        bias: `[N]`.
        query_columns: Columns of the queries.
        kv_columns: Columns of the keys, and of the values.
        epsilon: Of the norm.

    Returns:
        Queries `[B, T, query_columns]`, keys and values `[B, T, kv_columns]`.
    """
    columns = query_columns + 2 * kv_columns
    y = linear.reference(x, weight, norm, bias, columns=columns, activation="none", epsilon=epsilon)
    q, k, v = np.split(y, [query_columns, query_columns + kv_columns], axis=-1)
    return q, k, v


def body(
    op: onnxscript.OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    norm: ir.Value | None = None,
    bias: ir.Value | None = None,
    *,
    query_columns: ir.Value,
    kv_columns: ir.Value,
    epsilon: ir.Value,
) -> Any:
    """Trace one linear layer and split its columns."""
    columns = op.Add(op.Add(query_columns, kv_columns), kv_columns)
    y = linear.body(op, x, weight, norm, bias, columns=columns, activation="none", epsilon=epsilon)
    return trace_split(op, y, query_columns, kv_columns)


def trace_split(
    op: onnxscript.OpBuilder, y: ir.Value, query_columns: ir.Value, kv_columns: ir.Value
) -> Any:
    """Add the three parts of the columns of `y` to a graph."""
    lengths = [op.Reshape(length, [1]) for length in (query_columns, kv_columns, kv_columns)]
    return op.Split(y, op.Concat(*lengths, axis=0), axis=-1, _outputs=3)


PROJECTIONS = Operator(
    name="Projections",
    inputs=(
        Argument("x", ir.DataType.FLOAT, ("B", "T", "K")),
        panel_argument("1", "N", "K"),
        Argument("norm", ir.DataType.FLOAT, ("K",), optional=True),
        Argument("bias", ir.DataType.FLOAT, ("q+2*n",), optional=True),
    ),
    outputs=PROJECTED,
    attributes=(*PROJECTED_COLUMNS, Attribute("epsilon", float)),
    reference=reference,
    body=body,
    overloaded=True,
)
