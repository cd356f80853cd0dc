"""ExpertRoute: level 2 of routing, from a hidden state and its groups to k experts."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.numerics import masked_softmax
from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument

# Score of an expert whose group is not allowed. Finite, so that a token with fewer allowed
# experts than k still gets k distinct ids (with gate 0).
BLOCKED = -1e4


def reference(
    hidden: NDArray[Any],
    weight: NDArray[Any],
    prior_scale: NDArray[np.float32],
    group_log_probs: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    token_mask: NDArray[np.bool_],
    k: NDArray[np.int64],
    bias: NDArray[Any] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Choose the k most probable experts of every token, in fp32.

    Expert e belongs to group `e // (E / G)`. The gates are probabilities over all experts and are
    not renormalised over the chosen ones. Equal probabilities go to the lowest expert first.

    Args:
        hidden: `[B, T, d]`.
        weight: `[d, E]`.
        prior_scale: `[]`, weight of the group log-probabilities.
        group_log_probs: `[B, T, G]`.
        allowed: `[B, T, G]`.
        token_mask: `[B, T]`, False for padding.
        k: `[1]`, at most E.
        bias: `[E]`, added to the scores.

    Returns:
        Expert ids `[B, T, k]`, -1 where the token is padding, and gates `[B, T, k]`, there 0.
    """
    experts, groups = weight.shape[1], group_log_probs.shape[2]
    group_of = np.arange(experts) // (experts // groups)
    scores = hidden.astype(np.float32) @ weight.astype(np.float32)
    if bias is not None:
        scores = scores + bias.astype(np.float32)
    scores = scores + prior_scale * group_log_probs[..., group_of]
    scores = np.where(allowed[..., group_of], scores, np.float32(BLOCKED))
    probabilities = masked_softmax(scores)
    ids = np.argsort(-probabilities, axis=-1, kind="stable")[..., : int(k[0])]
    gates = np.take_along_axis(probabilities, ids, axis=-1)
    real = token_mask[..., None]
    return np.where(real, ids, -1).astype(np.int32), np.where(real, gates, np.float32(0))


def body(
    op: onnxscript.OpBuilder,
    hidden: ir.Value,
    weight: ir.Value,
    prior_scale: ir.Value,
    group_log_probs: ir.Value,
    allowed: ir.Value,
    token_mask: ir.Value,
    k: ir.Value,
    bias: ir.Value | None = None,
) -> Any:
    """Trace the scores as `[B, T, G, E / G]`, so that a group's values broadcast to its experts."""
    scores = op.MatMul(op.Cast(hidden, to=ir.DataType.FLOAT), op.Cast(weight, to=ir.DataType.FLOAT))
    if bias is not None:
        scores = op.Add(scores, op.Cast(bias, to=ir.DataType.FLOAT))
    by_group = op.Reshape(scores, op.Concat(op.Shape(group_log_probs), [-1], axis=0))
    prior = op.Unsqueeze(op.Mul(prior_scale, group_log_probs), [3])
    by_group = op.Where(op.Unsqueeze(allowed, [3]), op.Add(by_group, prior), BLOCKED)
    probabilities = op.Softmax(op.Reshape(by_group, op.Shape(scores)), axis=-1)
    gates, ids = op.TopK(probabilities, k, axis=-1, largest=1, sorted=1, _outputs=2)
    real = op.Unsqueeze(token_mask, [2])
    return (
        op.Where(real, op.Cast(ids, to=ir.DataType.INT32), -1),
        op.Where(real, gates, 0.0),
    )


EXPERT_ROUTE = Operator(
    name="ExpertRoute",
    inputs=(
        Argument("hidden", None, ("B", "T", "d")),
        Argument("weight", None, ("d", "E")),
        Argument("prior_scale", ir.DataType.FLOAT, ()),
        Argument("group_log_probs", ir.DataType.FLOAT, ("B", "T", "G")),
        Argument("allowed", ir.DataType.BOOL, ("B", "T", "G")),
        Argument("token_mask", ir.DataType.BOOL, ("B", "T")),
        Argument("k", ir.DataType.INT64, ("1",)),
        Argument("bias", None, ("E",), optional=True),
    ),
    outputs=(
        Argument("expert_ids", ir.DataType.INT32, ("B", "T", "k")),
        Argument("gates", ir.DataType.FLOAT, ("B", "T", "k")),
    ),
    reference=reference,
    body=body,
)
