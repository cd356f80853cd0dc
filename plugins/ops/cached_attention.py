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
    batch, steps, _ = q.shape
    kv_heads, head = past_k.shape[1], past_k.shape[3]
    used = int(lengths.max()) + steps
    present_k, present_v = past_k.copy(), past_v.copy()
    for row in range(batch):
        slots = slice(lengths[row], lengths[row] + steps)
        present_k[row, :, slots] = k[row].reshape(steps, kv_heads, head).swapaxes(0, 1)
        present_v[row, :, slots] = v[row].reshape(steps, kv_heads, head).swapaxes(0, 1)

    shared = num_heads // kv_heads
    keys = np.repeat(present_k[:, :, :used].astype(np.float32), shared, axis=1)
    values = np.repeat(present_v[:, :, :used].astype(np.float32), shared, axis=1)
    queries = q.reshape(batch, steps, num_heads, head).swapaxes(1, 2).astype(np.float32)
    scores = queries @ keys.swapaxes(2, 3) * np.float32(scale)
    if bias is not None:
        scores = scores + bias.astype(np.float32)
    own = lengths[:, None] + np.arange(steps)
    visible = np.arange(used) <= own[:, None, :, None]
    output = masked_softmax(scores, visible) @ values
    return output.swapaxes(1, 2).reshape(q.shape).astype(q.dtype), present_k, present_v


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
    split = op.Concat([0, 0, -1], op.Shape(past_k, start=3), axis=0)

    def heads(x: ir.Value) -> Any:
        return op.Transpose(op.Reshape(x, split), perm=[0, 2, 1, 3])

    first = op.Cast(lengths, to=ir.DataType.INT64)
    present_k = op.TensorScatter(past_k, heads(k), first, axis=2)
    present_v = op.TensorScatter(past_v, heads(v), first, axis=2)

    steps = op.Shape(q, start=1, end=2)
    used = op.Add(op.ReduceMax(first, keepdims=1), steps)
    own = op.Add(op.Unsqueeze(first, [1]), op.Range(0, op.Squeeze(steps), 1))
    visible = op.LessOrEqual(op.Range(0, op.Squeeze(used), 1), op.Unsqueeze(own, [1, 3]))
    mask = visible if bias is None else op.Where(visible, bias, op.CastLike(_LOWEST, bias))
    output = op.Attention(
        op.Mul(heads(q), op.CastLike(scale, q)),
        op.Slice(present_k, [0], used, [2]),
        op.Slice(present_v, [0], used, [2]),
        mask,
        scale=1.0,
    )
    joined = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), op.Shape(q))
    return joined, present_k, present_v


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
