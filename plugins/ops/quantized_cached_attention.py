"""QuantizedCachedAttention: causal self-attention over a cache of int8."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.cached_attention import (
    attend,
    extended,
    split_heads,
    trace_attention,
    trace_heads,
)
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute
from drl.plugins.ops.state_rows import (
    SCALE_BYTES,
    Float32,
    Int8,
    dequantize_states,
    quantize_states,
    trace_dequantized,
    trace_quantized,
)

_ROWS = ("B", "N", "C", f"h+{SCALE_BYTES}")


def reference(
    q: Float32,
    k: Float32,
    v: Float32,
    past_k: Int8,
    past_v: Int8,
    lengths: NDArray[np.int32],
    bias: Float32 | None = None,
    *,
    num_heads: int,
    scale: float,
) -> tuple[Float32, Int8, Int8]:
    """What `CachedAttention` computes, with new keys and values rounded to int8 when written.

    Args:
        q: `[B, T, H*h]`.
        k: `[B, T, N*h]`.
        v: `[B, T, N*h]`.
        past_k: Rows as `drl.plugins.ops.state_rows` has them, `[B, N, C, h+2]`.
        past_v: Likewise.
        lengths: `[B]`, tokens of the row already in the cache; `max(lengths) + T <= C`.
        bias: `[B or 1, H, T, L]` with `L = max(lengths) + T`, added to the scores.
        num_heads: H.
        scale: Factor of the scores.

    Returns:
        Output `[B, T, H*h]` and the cache with the new slots written (all others as they came).
    """
    kv_heads = past_k.shape[1]
    present_k, present_v = (
        extended(past, quantize_states(split_heads(new, kv_heads)), lengths)
        for past, new in ((past_k, k), (past_v, v))
    )
    used = slice(int(lengths.max()) + q.shape[1])
    keys, values = (dequantize_states(side[:, :, used]) for side in (present_k, present_v))
    output: Float32 = attend(q, keys, values, lengths, bias, num_heads, scale)
    return output, present_k, present_v


def body(
    op: onnxscript.OpBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    past_k: ir.Value,
    past_v: ir.Value,
    lengths: ir.Value,
    bias: ir.Value | None = None,
    *,
    num_heads: ir.Value,
    scale: ir.Value,
) -> Any:
    """Trace rounding, TensorScatter into the cache, and Attention over its first L slots.

    Only the written cache is read, so past and present may be the same memory.
    """
    width = op.Sub(op.Shape(past_k, start=3), [SCALE_BYTES])
    first = op.Cast(lengths, to=ir.DataType.INT64)
    present_k, present_v = (
        op.TensorScatter(past, trace_quantized(op, trace_heads(op, new, width)), first, axis=2)
        for past, new in ((past_k, k), (past_v, v))
    )
    used = op.Add(op.ReduceMax(first, keepdims=1), op.Shape(q, start=1, end=2))
    keys, values = (
        trace_dequantized(op, op.Slice(side, [0], used, [2])) for side in (present_k, present_v)
    )
    queries = op.Mul(trace_heads(op, q, width), scale)
    output = trace_attention(op, queries, (keys, values), first, bias)
    return op.Reshape(output, op.Shape(q)), present_k, present_v


QUANTIZED_CACHED_ATTENTION = Operator(
    name="QuantizedCachedAttention",
    inputs=(
        Argument("q", ir.DataType.FLOAT, ("B", "T", "H*h")),
        Argument("k", ir.DataType.FLOAT, ("B", "T", "N*h")),
        Argument("v", ir.DataType.FLOAT, ("B", "T", "N*h")),
        Argument("past_k", ir.DataType.INT8, _ROWS),
        Argument("past_v", ir.DataType.INT8, _ROWS),
        Argument("lengths", ir.DataType.INT32, ("B",)),
        Argument("bias", ir.DataType.FLOAT, ("1|B", "H", "T", "L"), optional=True),
    ),
    outputs=(
        Argument("output", ir.DataType.FLOAT, ("B", "T", "H*h")),
        Argument("present_k", ir.DataType.INT8, _ROWS),
        Argument("present_v", ir.DataType.INT8, _ROWS),
    ),
    attributes=(Attribute("num_heads", int, dimension="H"), Attribute("scale", float)),
    reference=reference,
    body=body,
)
