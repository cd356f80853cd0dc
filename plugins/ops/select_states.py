"""SelectStates: the encoder states that a path keeps, and the bias of cross-attention to them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument

# Bias of attention to padding.
BLOCKED = -1e4
_LOWEST = float(np.finfo(np.float32).min)


def reference(
    encoder_states: NDArray[Any],
    saliency: NDArray[np.float32],
    source_lengths: NDArray[np.int32],
    keep_counts: NDArray[np.int32],
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.float32]]:
    """Keep the `keep_counts[b]` valid states of highest saliency of row b, in their own order.

    Of equal saliencies, the earliest is kept first. `1 <= keep_counts[b] <= source_lengths[b]`;
    K is the largest keep count.

    Args:
        encoder_states: `[B, S, d]`.
        saliency: `[B, S]`.
        source_lengths: `[B]`.
        keep_counts: `[B]`.

    Returns:
        Kept states `[B, K, d]` (0 at padding), their number `[B]`, and the cross-attention bias
        `[B, K]`: log sigmoid of the saliency, -1e4 at padding.
    """
    batch, _, width = encoder_states.shape
    most = int(keep_counts.max())
    states = np.zeros((batch, most, width), encoder_states.dtype)
    bias = np.full((batch, most), BLOCKED, np.float32)
    for row in range(batch):
        valid = saliency[row, : source_lengths[row]]
        kept = np.sort(np.argsort(-valid, kind="stable")[: keep_counts[row]])
        states[row, : len(kept)] = encoder_states[row, kept]
        bias[row, : len(kept)] = -np.logaddexp(np.float32(0), -saliency[row, kept])
    return states, keep_counts.astype(np.int32), bias


def body(
    op: onnxscript.OpBuilder,
    encoder_states: ir.Value,
    saliency: ir.Value,
    source_lengths: ir.Value,
    keep_counts: ir.Value,
) -> Any:
    """Trace two TopK: the K best places of every row, then those in ascending order.

    ONNX defines that TopK gives the lowest index first among equals.
    """
    length = op.Shape(saliency, start=1, end=2)
    slots = op.Range(0, op.Squeeze(length), 1)
    valid = op.Less(slots, op.Unsqueeze(op.Cast(source_lengths, to=ir.DataType.INT64), [1]))
    counts = op.Cast(keep_counts, to=ir.DataType.INT64)
    most = op.ReduceMax(counts, keepdims=1)
    _, best = op.TopK(op.Where(valid, saliency, _LOWEST), most, axis=1, _outputs=2)
    wanted = op.Less(op.Range(0, op.Squeeze(most), 1), op.Unsqueeze(counts, [1]))
    # Places beyond a row's keep count sort behind all real ones.
    ordered, _ = op.TopK(op.Where(wanted, best, length), most, axis=1, largest=0, _outputs=2)
    place = op.Unsqueeze(op.Where(wanted, ordered, 0), [2])
    states = op.GatherND(encoder_states, place, batch_dims=1)
    score = op.GatherND(saliency, place, batch_dims=1)
    return (
        op.Where(op.Unsqueeze(wanted, [2]), states, op.CastLike(0.0, states)),
        op.Identity(keep_counts),
        op.Where(wanted, op.Neg(op.Softplus(op.Neg(score))), BLOCKED),
    )


SELECT_STATES = Operator(
    name="SelectStates",
    inputs=(
        Argument("encoder_states", None, ("B", "S", "d")),
        Argument("saliency", ir.DataType.FLOAT, ("B", "S")),
        Argument("source_lengths", ir.DataType.INT32, ("B",)),
        Argument("keep_counts", ir.DataType.INT32, ("B",)),
    ),
    outputs=(
        Argument("kept_states", None, ("B", "K", "d")),
        Argument("kept_lengths", ir.DataType.INT32, ("B",)),
        Argument("cross_bias", ir.DataType.FLOAT, ("B", "K")),
    ),
    reference=reference,
    body=body,
)
