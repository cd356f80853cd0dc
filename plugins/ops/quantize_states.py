"""QuantizeStates: keys or values of encoder states as rows of int8, head by head."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript

from drl.plugins.ops.cached_attention import split_heads, trace_heads
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute
from drl.plugins.ops.state_rows import (
    SCALE_BYTES,
    Float32,
    Int8,
    quantize_states,
    trace_quantized,
)


def reference(x: Float32, *, kv_heads: int, head_dim: int) -> Int8:
    """Round every head of every state to int8, with a scale of its own.

    Args:
        x: `[B, K, N*h]`.
        kv_heads: N.
        head_dim: h.

    Returns:
        Rows as `drl.plugins.ops.state_rows` has them, `[B, N, K, h+2]`.
    """
    return np.ascontiguousarray(quantize_states(split_heads(x, kv_heads)))


def body(op: onnxscript.OpBuilder, x: ir.Value, *, kv_heads: ir.Value, head_dim: ir.Value) -> Any:
    """Trace the split into heads and the rounding."""
    return trace_quantized(op, trace_heads(op, x, op.Reshape(head_dim, [1])))


QUANTIZE_STATES = Operator(
    name="QuantizeStates",
    inputs=(Argument("x", ir.DataType.FLOAT, ("B", "K", "N*h")),),
    outputs=(Argument("rows", ir.DataType.INT8, ("B", "N", "K", f"h+{SCALE_BYTES}")),),
    attributes=(
        Attribute("kv_heads", int, dimension="N"),
        Attribute("head_dim", int, dimension="h"),
    ),
    reference=reference,
    body=body,
)
