"""QuantizedCrossAttention: attention to encoder states whose keys and values are int8."""

from typing import Any

import onnx_ir as ir
import onnxscript

from drl.plugins.ops import cross_attention
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute
from drl.plugins.ops.state_rows import (
    SCALE_BYTES,
    Float32,
    Int8,
    dequantize_states,
    trace_dequantized,
)

_ROWS = ("R", "N", "K", f"h+{SCALE_BYTES}")


def reference(
    q: Float32, k: Int8, v: Int8, bias: Float32, *, num_heads: int, scale: float
) -> Float32:
    """What `CrossAttention` computes from the keys and values that the rows stand for.

    Args:
        q: `[B, T, H*h]`.
        k: Rows as `drl.plugins.ops.state_rows` has them, `[R, N, K, h+2]`.
        v: Likewise.
        bias: `[R, K]`, added to the scores of all heads.
        num_heads: H.
        scale: Factor of the scores.

    Returns:
        `[B, T, H*h]`.
    """
    sides = dequantize_states(k), dequantize_states(v)
    return cross_attention.reference(q, *sides, bias, num_heads=num_heads, scale=scale)


def body(
    op: onnxscript.OpBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    bias: ir.Value,
    *,
    num_heads: ir.Value,
    scale: ir.Value,
) -> Any:
    """Trace the body of `CrossAttention`."""
    sides = trace_dequantized(op, k), trace_dequantized(op, v)
    return cross_attention.body(op, q, *sides, bias, num_heads=num_heads, scale=scale)


QUANTIZED_CROSS_ATTENTION = Operator(
    name="QuantizedCrossAttention",
    inputs=(
        Argument("q", ir.DataType.FLOAT, ("B", "T", "H*h")),
        Argument("k", ir.DataType.INT8, _ROWS),
        Argument("v", ir.DataType.INT8, _ROWS),
        Argument("bias", ir.DataType.FLOAT, ("R", "K")),
    ),
    outputs=(Argument("output", ir.DataType.FLOAT, ("B", "T", "H*h")),),
    attributes=(Attribute("num_heads", int, dimension="H"), Attribute("scale", float)),
    reference=reference,
    body=body,
)
