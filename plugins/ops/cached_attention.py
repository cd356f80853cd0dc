"""CachedAttention: causal self-attention of new tokens over a key-value cache."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import masked_softmax
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute

# Score of a slot that a token may not see, where a bias is given; finite in every float type.
_LOWEST = float(np.finfo(np.float16).min)


def reference(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    past_k: NDArray[Any],
    past_v: NDArray[Any],
    lengths: NDArray[np.int32],
    bias: NDArray[Any] | None = None,
    *,
    num_heads: int,
    scale: float,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Write the new keys and values to the cache, then attend to it, in fp32.

    New token t of row b goes to slot `lengths[b] + t` and attends to that slot and all before it.
    Head i reads key-value head `i // (H / N)`.

    Args:
        q: `[B, T, H*h]`.
        k: `[B, T, N*h]`.
        v: `[B, T, N*h]`.
        past_k: `[B, N, C, h]`.
        past_v: `[B, N, C, h]`.
        lengths: `[B]`, tokens of the row already in the cache; `max(lengths) + T <= C`.
        bias: `[B or 1, H, T, L]` with `L = max(lengths) + T`, added to the scores.
        num_heads: H.
        scale: Factor of the scores.

    Returns:
        Output `[B, T, H*h]` and the cache with the new slots written (all others as they came).
    """
    kv_heads = past_k.shape[1]
    present_k = extended(past_k, split_heads(k, kv_heads), lengths)
    present_v = extended(past_v, split_heads(v, kv_heads), lengths)
    used = slice(int(lengths.max()) + q.shape[1])
    keys, values = (side[:, :, used].astype(np.float32) for side in (present_k, present_v))
    output = attend(q, keys, values, lengths, bias, num_heads, scale)
    return output, present_k, present_v


def split_heads(x: NDArray[Any], kv_heads: int) -> NDArray[Any]:
    """Queries, keys or values `[B, T, N*h]` as `[B, N, T, h]`."""
    batch, steps, _ = x.shape
    return x.reshape(batch, steps, kv_heads, x.shape[2] // kv_heads).swapaxes(1, 2)


def extended(past: NDArray[Any], new: NDArray[Any], lengths: NDArray[np.int32]) -> NDArray[Any]:
    """The cache `[B, N, C, w]` with new slots `[B, N, T, w]` behind the first `lengths[b]`."""
    present = past.copy()
    for row, start in enumerate(lengths):
        present[row, :, start : start + new.shape[2]] = new[row]
    return present


def attend(
    q: NDArray[Any],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    lengths: NDArray[np.int32],
    bias: NDArray[Any] | None,
    num_heads: int,
    scale: float,
) -> NDArray[Any]:
    """What the queries `[B, T, H*h]` of the operator read from its first L slots `[B, N, L, h]`."""
    steps = q.shape[1]
    shared = num_heads // keys.shape[1]
    keys, values = (np.repeat(side, shared, axis=1) for side in (keys, values))
    queries = split_heads(q, num_heads).astype(np.float32)
    scores = queries @ keys.swapaxes(2, 3) * np.float32(scale)
    if bias is not None:
        scores = scores + bias.astype(np.float32)
    own = lengths[:, None] + np.arange(steps)
    visible = np.arange(keys.shape[2]) <= own[:, None, :, None]
    output = masked_softmax(scores, visible) @ values
    return output.swapaxes(1, 2).reshape(q.shape).astype(q.dtype)


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
    """Trace TensorScatter into the cache and Attention over its first L slots.

    Only the written cache is read, so past and present may be the same memory.
    """
    width = op.Shape(past_k, start=3)
    first = op.Cast(lengths, to=ir.DataType.INT64)
    present_k = op.TensorScatter(past_k, trace_heads(op, k, width), first, axis=2)
    present_v = op.TensorScatter(past_v, trace_heads(op, v, width), first, axis=2)
    used = op.Add(op.ReduceMax(first, keepdims=1), op.Shape(q, start=1, end=2))
    keys, values = (op.Slice(side, [0], used, [2]) for side in (present_k, present_v))
    queries = op.Mul(trace_heads(op, q, width), op.CastLike(scale, q))
    output = trace_attention(op, queries, (keys, values), first, bias)
    return op.Reshape(output, op.Shape(q)), present_k, present_v


def trace_heads(op: onnxscript.OpBuilder, x: ir.Value, width: ir.Value) -> Any:
    """Trace `[B, T, H*h]` turned into `[B, H, T, h]`; `width` is h, int64 `[1]`."""
    split = op.Reshape(x, op.Concat([0, 0, -1], width, axis=0))
    return op.Transpose(split, perm=[0, 2, 1, 3])


def trace_attention(
    op: onnxscript.OpBuilder,
    queries: ir.Value,
    sides: tuple[ir.Value, ir.Value],
    first: ir.Value,
    bias: ir.Value | None,
) -> Any:
    """Trace what the scaled queries `[B, H, T, h]` of the operator read from its first L slots.

    Args:
        op: Adds nodes.
        queries: `[B, H, T, h]`.
        sides: Keys and values, `[B, N, L, h]`.
        first: The slot of each row's first new token, int64 `[B]`.
        bias: Added to the scores.

    Returns:
        `[B, T, H, h]`.
    """
    steps, used = op.Shape(queries, start=2, end=3), op.Shape(sides[0], start=2, end=3)
    own = op.Add(op.Unsqueeze(first, [1]), op.Range(0, op.Squeeze(steps), 1))
    visible = op.LessOrEqual(op.Range(0, op.Squeeze(used), 1), op.Unsqueeze(own, [1, 3]))
    mask = visible if bias is None else op.Where(visible, bias, op.CastLike(_LOWEST, bias))
    return op.Transpose(op.Attention(queries, *sides, mask, scale=1.0), perm=[0, 2, 1, 3])


CACHED_ATTENTION = Operator(
    name="CachedAttention",
    inputs=(
        Argument("q", None, ("B", "T", "H*h")),
        Argument("k", None, ("B", "T", "N*h")),
        Argument("v", None, ("B", "T", "N*h")),
        Argument("past_k", None, ("B", "N", "C", "h")),
        Argument("past_v", None, ("B", "N", "C", "h")),
        Argument("lengths", ir.DataType.INT32, ("B",)),
        Argument("bias", None, ("1|B", "H", "T", "L"), optional=True),
    ),
    outputs=(
        Argument("output", None, ("B", "T", "H*h")),
        Argument("present_k", None, ("B", "N", "C", "h")),
        Argument("present_v", None, ("B", "N", "C", "h")),
    ),
    attributes=(Attribute("num_heads", int, dimension="H"), Attribute("scale", float)),
    reference=reference,
    body=body,
)
