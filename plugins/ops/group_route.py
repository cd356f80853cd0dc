"""GroupRoute: level 1 of routing, from token ids to groups of experts."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.operator import Operator
from drl.plugins.ops.schema import Argument


def reference(
    token_ids: NDArray[np.int64],
    log_prob_table: NDArray[np.float32],
    allowed_table: NDArray[np.bool_],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Look up the groups of every token.

    Args:
        token_ids: `[B, T]`.
        log_prob_table: `[V, G]`, log-probability of each group for each token of the vocabulary.
        allowed_table: `[V, G]`, the best groups of each token.

    Returns:
        Group log-probabilities `[B, T, G]` and allowed groups `[B, T, G]`.
    """
    return log_prob_table[token_ids], allowed_table[token_ids]


def body(
    op: onnxscript.OpBuilder,
    token_ids: ir.Value,
    log_prob_table: ir.Value,
    allowed_table: ir.Value,
) -> Any:
    """Trace one gather per table."""
    return op.Gather(log_prob_table, token_ids, axis=0), op.Gather(allowed_table, token_ids, axis=0)


GROUP_ROUTE = Operator(
    name="GroupRoute",
    inputs=(
        Argument("token_ids", ir.DataType.INT64, ("B", "T")),
        Argument("log_prob_table", ir.DataType.FLOAT, ("V", "G")),
        Argument("allowed_table", ir.DataType.BOOL, ("V", "G")),
    ),
    outputs=(
        Argument("group_log_probs", ir.DataType.FLOAT, ("B", "T", "G")),
        Argument("allowed", ir.DataType.BOOL, ("B", "T", "G")),
    ),
    reference=reference,
    body=body,
)
