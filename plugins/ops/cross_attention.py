"""CrossAttention: rows of the decoder attend to the encoder states of their source."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import masked_softmax
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument, Attribute

Float32 = NDArray[np.float32]

_ABSENT = np.float32(-1e4)


def reference(
    q: Float32, k: Float32, v: Float32, bias: Float32, *, num_heads: int, scale: float
) -> Float32:
    """softmax(scale · q kᵀ + bias) v over the states of a row's source.

    States at the end of a source whose bias is -1e4 or lower count as absent, unless all are.

    The B rows are those of R sources side by side, as many of each: row b reads source
    `b // (B / R)`. Head i reads key-value head `i // (H / N)`.

    Args:
        q: `[B, T, H*h]`.
        k: `[R, N, K, h]`.
        v: `[R, N, K, h]`.
        bias: `[R, K]`, added to the scores of all heads.
        num_heads: H.
        scale: Factor of the scores.

    Returns:
        `[B, T, H*h]`.
    """
    batch, steps, _ = q.shape
    sources, kv_heads, _, head = k.shape
    heads = q.reshape(batch, steps, num_heads, head).swapaxes(1, 2)
    keys, values = (
        np.repeat(np.repeat(side, num_heads // kv_heads, axis=1), batch // sources, axis=0)
        for side in (k, v)
    )
    there = np.repeat(_present(bias), batch // sources, axis=0)[:, None]
    own_bias = np.repeat(bias, batch // sources, axis=0)
    scores = heads @ keys.swapaxes(2, 3) * np.float32(scale) + own_bias[:, None, None]
    weights = masked_softmax(scores, there[:, :, None])
    output: Float32 = weights @ np.where(there[..., None], values, np.float32(0))
    return output.swapaxes(1, 2).reshape(q.shape)


def _present(bias: Float32) -> NDArray[np.bool_]:
    """The states up to the last with a bias above -1e4, or all where there is none."""
    visible = ~(bias <= _ABSENT)
    present: NDArray[np.bool_] = np.logical_or.accumulate(visible[:, ::-1], axis=1)[:, ::-1]
    return present | ~visible.any(axis=1, keepdims=True)


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
    """Trace one attention per source, whose keys are so stored and read once.

    Its queries are those of all the source's rows, and of all heads that share a key head.

    Absent states get their bias like all others. The result differs from the reference only where
    that leaves them a weight: with scores so large, some thousands, that -1e4 does not hide them,
    or with a bias near -1e4 on all states that are present; or where what is absent is not finite.
    """
    sources, kv_heads = op.Shape(k, end=1), op.Shape(k, start=1, end=2)
    width = op.Shape(k, start=3)
    group = op.Div(op.Reshape(num_heads, [1]), kv_heads)
    shared = op.Concat(sources, [-1], kv_heads, op.Mul(group, width), axis=0)
    by_source = op.Transpose(op.Reshape(op.Mul(q, scale), shared), perm=[0, 2, 1, 3])
    queries = op.Reshape(by_source, op.Concat([0, 0, -1], width, axis=0))
    # ONNX Runtime's CPU kernel broadcasts no query dimension.
    places = op.Concat(op.Shape(queries, start=2, end=3), [1], axis=0)
    mask = op.Expand(op.Unsqueeze(bias, [1, 2]), places)
    mixed = op.Attention(queries, k, v, mask, scale=1.0)
    merged = op.Reshape(mixed, op.Concat([0, 0, -1], op.Mul(group, width), axis=0))
    return op.Reshape(op.Transpose(merged, perm=[0, 2, 1, 3]), op.Shape(q))


CROSS_ATTENTION = Operator(
    name="CrossAttention",
    inputs=(
        Argument("q", ir.DataType.FLOAT, ("B", "T", "H*h")),
        Argument("k", ir.DataType.FLOAT, ("R", "N", "K", "h")),
        Argument("v", ir.DataType.FLOAT, ("R", "N", "K", "h")),
        Argument("bias", ir.DataType.FLOAT, ("R", "K")),
    ),
    outputs=(Argument("output", ir.DataType.FLOAT, ("B", "T", "H*h")),),
    attributes=(Attribute("num_heads", int, dimension="H"), Attribute("scale", float)),
    reference=reference,
    body=body,
)
