"""What a head makes of its logits: the largest of every row, and the logarithm of all exponentials.

Shared by the heads, for NumPy and for graphs.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.schema import Argument

Float32 = NDArray[np.float32]
Ranked = tuple[Float32, Float32, NDArray[np.int32], Float32]
"""Logits `[B, T, N or 0]`, values and ids `[B, T, c]`, normalisers `[B, T]`."""

RANKED_OUTPUTS = (
    Argument("logits", ir.DataType.FLOAT, ("B", "T", "N|0")),
    Argument("values", ir.DataType.FLOAT, ("B", "T", "c")),
    Argument("ids", ir.DataType.INT32, ("B", "T", "c")),
    Argument("normalisers", ir.DataType.FLOAT, ("B", "T")),
)
"""The outputs of every head."""

_LOWEST = float(np.finfo(np.float32).min)


def rank(logits: Float32, count: int) -> Ranked:
    """The outputs of a head that has these logits.

    Args:
        logits: `[B, T, N]`.
        count: c, at most N; 0 asks for all logits and no ranking.

    Returns:
        Logits `[B, T, N]`, or `[B, T, 0]` where c is not 0; values and ids `[B, T, c]`, the largest
        first, equal ones by id, NaN below every number; normalisers `[B, T]`.
    """
    # A stable sort keeps equal ones in the order of their ids; NaN sorts behind all numbers.
    order = np.argsort(-logits, axis=-1, kind="stable")
    ids = order[..., :count].astype(np.int32)
    values = np.take_along_axis(logits, ids, axis=-1)
    largest = logits.max(axis=-1, keepdims=True)
    normalisers = largest[..., 0] + np.log(np.exp(logits - largest).sum(axis=-1))
    return logits if count == 0 else logits[..., :0], values, ids, normalisers


def trace_kept(
    op: onnxscript.OpBuilder, logits: ir.Value, candidates: ir.Value, columns: Any
) -> Any:
    """Add what is left of logits `[B, T, N]` to a graph: all for c = 0, else none of a row."""
    kept = op.Where(op.Equal(candidates, 0), columns, 0)
    return op.Slice(logits, [0], kept, [2])


def trace_ids(op: onnxscript.OpBuilder, logits: ir.Value, candidates: ir.Value) -> Any:
    """Add the ids of the c largest to a graph, int64 `[B, T, c]`; logits may be NaN."""
    ranks = op.Where(op.IsNaN(logits), -np.inf, op.Max(logits, _LOWEST))
    return op.TopK(ranks, candidates, axis=-1, largest=1, sorted=1, _outputs=2)[1]


def trace_values(op: onnxscript.OpBuilder, logits: ir.Value, ids: ir.Value) -> Any:
    """Add the logits `[B, T, c]` of these ids to a graph."""
    return op.GatherND(logits, op.Unsqueeze(ids, [3]), batch_dims=2)
