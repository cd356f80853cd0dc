"""EncoderAttention: the tokens of a source attend to each other."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.cached_attention import split_heads, trace_heads
from drl.plugins.ops.numerics import masked_softmax
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]

_LOWEST = float(np.finfo(np.float32).min)


def reference(
    q: Float32,
    k: Float32,
    v: Float32,
    lengths: NDArray[np.int32],
    bias: Float32 | None = None,
    *,
    num_heads: int,
    scale: float,
) -> Float32:
    """softmax(scale · q kᵀ + bias) v over the first `lengths[b]` tokens; 0 for those behind.

    Head i reads key-value head `i // (H / N)`. The bias of query i and key j is row j - i + D // 2
    of `bias`, or its first or last row where there is none.

    Args:
        q: `[B, S, H*h]`.
        k: `[B, S, N*h]`.
        v: `[B, S, N*h]`.
        lengths: `[B]`, from 0 to S.
        bias: `[D, H]`, D odd: added to the scores, by distance.
        num_heads: H.
        scale: Factor of the scores.

    Returns:
        `[B, S, H*h]`.
    """
    kv_heads = k.shape[2] * num_heads // q.shape[2]
    queries = split_heads(q, num_heads)
    keys, values = (
        np.repeat(split_heads(side, kv_heads), num_heads // kv_heads, axis=1) for side in (k, v)
    )
    output = np.zeros_like(queries)
    for row, length in enumerate(lengths):
        if length == 0:
            continue
        scores = queries[row, :, :length] @ keys[row, :, :length].swapaxes(1, 2) * np.float32(scale)
        if bias is not None:
            scores = scores + _bias(bias, int(length))
        output[row, :, :length] = masked_softmax(scores) @ values[row, :, :length]
    return output.swapaxes(1, 2).reshape(q.shape)


def _bias(bias: Float32, length: int) -> Float32:
    """The bias `[D, H]` of every query and key, `[H, S, S]`."""
    places = np.arange(length)
    distances = places - places[:, None] + len(bias) // 2
    by_pair: Float32 = bias[np.clip(distances, 0, len(bias) - 1)].transpose(2, 0, 1)
    return by_pair


def body(
    op: onnxscript.OpBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    lengths: ir.Value,
    bias: ir.Value | None = None,
    *,
    num_heads: ir.Value,
    scale: ir.Value,
) -> Any:
    """Trace one Attention, whose mask is bias and padding.

    The result differs from the reference only where padding is not finite.
    """
    heads = op.Reshape(num_heads, [1])
    width = op.Div(op.Shape(q, start=2), heads)
    steps = op.Range(0, op.Squeeze(op.Shape(q, start=1, end=2)), 1)
    visible = op.Less(steps, op.Unsqueeze(op.Cast(lengths, to=ir.DataType.INT64), [1]))
    places = op.Shape(q, start=1, end=2)
    keys_there = op.Unsqueeze(visible, [1, 2])
    # ONNX Runtime's CPU kernel does not broadcast the query dimension of a mask.
    if bias is None:
        square = op.Expand(0.0, op.Concat([1, 1], places, places, axis=0))
    else:
        square = _trace_bias(op, bias, steps)
    mask = op.Where(keys_there, square, _LOWEST)
    queries = op.Mul(trace_heads(op, q, width), scale)
    sides = (trace_heads(op, side, width) for side in (k, v))
    mixed = op.Transpose(op.Attention(queries, *sides, mask, scale=1.0), perm=[0, 2, 1, 3])
    output = op.Reshape(mixed, op.Shape(q))
    return op.Where(op.Unsqueeze(visible, [2]), output, 0.0)


def _trace_bias(op: onnxscript.OpBuilder, bias: ir.Value, steps: ir.Value) -> Any:
    """Trace the bias of every query and key, `[1, H, S, S]`."""
    last = op.Sub(op.Shape(bias, end=1), 1)
    distances = op.Add(op.Sub(steps, op.Unsqueeze(steps, [1])), op.Div(last, 2))
    rows = op.Min(op.Max(distances, 0), last)
    return op.Unsqueeze(op.Transpose(op.Gather(bias, rows), perm=[2, 0, 1]), [0])


ENCODER_ATTENTION = Operator(
    name="EncoderAttention",
    inputs=(
        Argument("q", ir.DataType.FLOAT, ("B", "S", "H*h")),
        Argument("k", ir.DataType.FLOAT, ("B", "S", "N*h")),
        Argument("v", ir.DataType.FLOAT, ("B", "S", "N*h")),
        Argument("lengths", ir.DataType.INT32, ("B",)),
        Argument("bias", ir.DataType.FLOAT, ("D", "H"), optional=True),
    ),
    outputs=(Argument("output", ir.DataType.FLOAT, ("B", "S", "H*h")),),
    attributes=(Attribute("num_heads", int, dimension="H"), Attribute("scale", float)),
    reference=reference,
    body=body,
)
